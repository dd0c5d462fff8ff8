use super::*;
use crate::sample::{Message, Provenance, Role};

const TEST: &str = "Hello, since the update on Tuesday the export button on the billing page does nothing at all, \
                    no error and no file. Can you look into it before our audit on Friday?";

fn test_split() -> Vec<Sample> {
    let other = "Where can I change the language of the menu?";
    [other, TEST]
        .map(|text| {
            let turns = vec![
                Message::new(Role::User, text),
                Message::new(Role::Assistant, "{}"),
            ];
            Sample::new(turns, Provenance::Coverage { line: 1 }).unwrap()
        })
        .to_vec()
}

fn evidence(instruction: &str) -> Option<Evidence> {
    Contamination::new(&test_split(), ContaminationConfig::default()).evidence(instruction)
}

#[test]
fn a_copy_is_found_with_the_prompt_it_copies() {
    let found = evidence(TEST).unwrap();
    assert_eq!(found.test, test_split()[1].id());
    assert_eq!(found.value, 1.0);
    assert!(TEST.starts_with(&found.test_instruction));
}

#[test]
fn case_spacing_and_typos_hide_nothing() {
    // Alone, since words in the same order would give it away as well.
    let config = ContaminationConfig {
        rouge_l_min: 1.1,
        ..ContaminationConfig::default()
    };
    let mut contamination = Contamination::new(&test_split(), config);
    let found = contamination
        .evidence("where CAN i chnge the languageof the menu")
        .unwrap();
    assert_eq!(
        (found.measure, found.test),
        (Measure::CharacterJaccard, test_split()[0].id())
    );
}

#[test]
fn a_prompt_inside_a_longer_text_is_found_by_its_runs_of_words() {
    let longer = format!(
        "I manage accounts for a chain of eleven bakeries and have used your product for six years now. {TEST} By the \
         way, the new colours are lovely, and my colleague from the warehouse asks whether dark mode is coming too."
    );
    assert_eq!(evidence(&longer).unwrap().measure, Measure::NgramShare);
}

#[test]
fn a_reordered_paraphrase_is_found_by_rouge_l() {
    let near = "Hi, since the update on Monday the export button on the invoice page does nothing, no error and no \
                file. Can you look at it before our review on Friday?";
    assert_eq!(evidence(near).unwrap().measure, Measure::RougeL);
}

#[test]
fn an_honest_prompt_of_the_same_task_is_clean() {
    assert_eq!(
        evidence("Since yesterday the search page shows an error when I filter by date. Please fix it."),
        None
    );
    assert_eq!(evidence("Where can I download my invoice?"), None);
    assert_eq!(evidence("🙂"), None);
}

#[test]
fn measures_can_be_switched_off() {
    let off = ContaminationConfig {
        ngram_words: 8,
        ngram_share_min: 2.0,
        rouge_l_min: 2.0,
        character_jaccard_min: 2.0,
    };
    assert_eq!(Contamination::new(&test_split(), off).evidence(TEST), None);
}

#[test]
fn the_share_of_words_in_runs_is_counted_once_per_word() {
    let share = |instruction: &[u32], test: &[u32], size: usize| {
        ngram_share(&instruction.windows(size.max(1)).collect(), test, size)
    };
    assert_eq!(share(&[9, 1, 2, 3, 4, 9], &[1, 2, 3, 4, 5, 6], 3), 4.0 / 6.0);
    assert_eq!(share(&[1, 2, 3, 7, 4, 5, 6], &[1, 2, 3, 4, 5, 6], 3), 1.0);
    assert_eq!(share(&[1, 2], &[1, 2], 3), 0.0);
    assert_eq!(share(&[], &[], 0), 0.0);
}
