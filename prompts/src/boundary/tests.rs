use super::choose;

#[test]
fn the_same_texts_give_the_same_code_and_others_another() {
    assert_eq!(choose(["a", "b"]), choose(["a", "b"]));
    assert_ne!(choose(["ab", "c"]), choose(["a", "bc"]));
    assert_eq!(choose([]).len(), 8);
}

#[test]
fn a_text_that_holds_every_short_code_still_gets_a_free_one() {
    // The code follows from the texts, so a forger would have to hold the code of the text that holds it. Grow a
    // text by the code it got and see that the next code is again free.
    let mut text = String::from("response");
    for _ in 0..100 {
        let code = choose([text.as_str()]);
        assert!(!text.contains(&code));
        text.push_str(&code);
    }
}
