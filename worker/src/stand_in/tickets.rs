//! The demo's task: from a customer's message to one line of JSON that says what it is about.
//!
//! Invariant: everything is a pure function of its seed. Messages are put together from sentences, so that there are
//! far more of them than anybody can memorize, and the label follows from the words.

mod draw;
mod label;
mod phrases;
mod teacher;

#[cfg(test)]
mod tests;

pub(super) use draw::Draw;
pub use label::{Category, Label, Language, Priority, Team, Wish};
pub use teacher::reference_label;

use phrases::{Phrases, phrases};

/// The task's standing instruction. It is short: every sample pays for its tokens.
pub const TASK_INSTRUCTION: &str =
    "Triage the message as JSON: category, team, priority, language, wish, order.";

/// Pairs of the demo's coverage dataset.
pub const COVERAGE_PAIRS: usize = 150;

/// A customer's message and what it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// As the customer wrote it.
    pub message: String,
    /// The right answer.
    pub label: Label,
}

/// Separates the tickets of the coverage dataset from those of the synthesis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Coverage,
    Synthesis,
}

/// The first `n_tickets` tickets of a seed's coverage stream.
pub fn generate(seed: u64, n_tickets: usize) -> Vec<Ticket> {
    (0..n_tickets as u64)
        .map(|index| ticket(seed, Stream::Coverage, index))
        .collect()
}

/// The demo's coverage dataset: [`COVERAGE_PAIRS`] JSONL rows `{"messages": [system, user, assistant]}`.
pub fn coverage_dataset(seed: u64) -> String {
    generate(seed, COVERAGE_PAIRS)
        .iter()
        .map(|ticket| row(ticket) + "\n")
        .collect()
}

fn row(ticket: &Ticket) -> String {
    serde_json::json!({
        "messages": [
            {"role": "system", "content": TASK_INSTRUCTION},
            {"role": "user", "content": ticket.message},
            {"role": "assistant", "content": ticket.label.to_json()},
        ]
    })
    .to_string()
}

/// Things that can be sent, break, and be repaired.
const DEVICES: [&str; 8] = [
    "Lumo Lamp",
    "Kestrel Kettle",
    "Brava Speaker",
    "Orbit Vacuum",
    "Nimbus Fan",
    "Tonda Watch",
    "Polar Fridge",
    "Vela Camera",
];
/// Things that are logged in to and subscribed to.
const PROGRAMS: [&str; 8] = [
    "Taskly App",
    "PhotoVault Cloud",
    "Nota Sync",
    "Ledger Online",
    "Mapio App",
    "Chorus Studio",
    "Safebox Cloud",
    "Fable Online",
];
const NAMES: [&str; 12] = [
    "Anna", "Ben", "Clara", "David", "Elif", "Felix", "Greta", "Hugo", "Ines", "Jonas", "Lucia", "Marc",
];
const TOWNS: [&str; 8] = [
    "Bremen", "Lyon", "Leeds", "Sevilla", "Graz", "Gent", "Bristol", "Toledo",
];

/// The languages of four tickets in a row: half of them English.
const LANGUAGES: [Language; 4] = [
    Language::English,
    Language::English,
    Language::German,
    Language::Spanish,
];
/// The priorities of six tickets in a row.
const PRIORITIES: [Priority; 6] = [
    Priority::Normal,
    Priority::Normal,
    Priority::High,
    Priority::High,
    Priority::Low,
    Priority::Low,
];

/// The ticket at `index`. Tickets in a row share out categories, languages and priorities evenly, so that no seed is
/// much harder than another.
pub(super) fn ticket(seed: u64, stream: Stream, index: u64) -> Ticket {
    let category = shared_out(Category::ALL, &[seed, stream as u64, 0], index);
    let language = shared_out(LANGUAGES, &[seed, stream as u64, 1], index);
    let priority = shared_out(PRIORITIES, &[seed, stream as u64, 2], index);
    write(
        category,
        language,
        priority,
        &mut Draw::new(&[seed, stream as u64, 3, index]),
    )
}

/// What falls to `index` when each `N` in a row get all of `items`, in a random order of their own.
fn shared_out<T: Copy, const N: usize>(mut items: [T; N], key: &[u64; 3], index: u64) -> T {
    let [seed, stream, choice] = *key;
    Draw::new(&[seed, stream, choice, index / N as u64]).shuffle(&mut items);
    items[(index % N as u64) as usize]
}

fn write(category: Category, language: Language, priority: Priority, draw: &mut Draw) -> Ticket {
    let phrases = phrases(language);
    let is_software = match category {
        Category::Delivery => false,
        Category::Login | Category::Cancel => true,
        Category::Billing | Category::Defect | Category::Question => draw.chance(0.5),
    };
    let product = draw.text(if is_software { &PROGRAMS } else { &DEVICES });
    let issues = phrases.issues.get(category as usize).copied().unwrap_or_default();
    let mut sentences = vec![fill(draw.text(issues), product, phrases, draw)];

    let order = draw.chance(0.6).then(|| format!("K{:04}", draw.below(10_000)));
    if let Some(order) = &order {
        sentences.push(draw.text(phrases.order).replace("{o}", order));
    } else if draw.chance(0.2) {
        let customer = format!("C{:04}", draw.below(10_000));
        sentences.push(draw.text(phrases.customer).replace("{c}", &customer));
    }
    match priority {
        Priority::High => sentences.push(draw.text(phrases.urgent).to_owned()),
        Priority::Low => sentences.push(draw.text(phrases.unhurried).to_owned()),
        Priority::Normal => {}
    }
    let (wish, sentence) = wish(category, phrases, draw);
    sentences.extend(sentence.map(str::to_owned));
    if draw.chance(0.25) {
        sentences.push(fill(draw.text(phrases.details), product, phrases, draw));
    }
    // Most people begin with what happened.
    let first = if draw.chance(0.7) { 1 } else { 0 };
    if let Some(movable) = sentences.get_mut(first..) {
        draw.shuffle(movable);
    }
    if draw.chance(0.3) {
        let greeting = draw.text(phrases.greetings);
        if let Some(first) = sentences.first_mut() {
            *first = format!("{greeting}\n{first}");
        }
    }
    if draw.chance(0.2) {
        sentences.push(format!("{} {}", draw.text(phrases.closings), draw.text(&NAMES)));
    }
    let team = Team::of(category);
    Ticket {
        message: sentences.join(" "),
        label: Label {
            category,
            team,
            priority,
            language,
            wish,
            order,
        },
    }
}

/// What is to be made good, and the sentence that says so.
fn wish(category: Category, phrases: &Phrases, draw: &mut Draw) -> (Wish, Option<&'static str>) {
    let has_damage = !matches!(category, Category::Question | Category::Login);
    if has_damage && draw.chance(0.4) {
        (Wish::Refund, Some(draw.text(phrases.refund)))
    } else if has_damage && draw.chance(0.4) {
        (Wish::Exchange, Some(draw.text(phrases.exchange)))
    } else {
        (Wish::None, None)
    }
}

/// The message about another product of the same kind, or as it is when it names none.
pub(super) fn other_product(message: &str, draw: &mut Draw) -> String {
    let named =
        |products: &'static [&'static str]| products.iter().find(|product| message.contains(**product));
    let Some((old, products)) = [&DEVICES, &PROGRAMS]
        .into_iter()
        .find_map(|products| Some((*named(products)?, products)))
    else {
        return message.to_owned();
    };
    message.replace(old, draw.text(products))
}

fn fill(sentence: &str, product: &str, phrases: &Phrases, draw: &mut Draw) -> String {
    let date = format!("{}{}", 1 + draw.below(28), draw.text(&phrases.months));
    let number = (2 + draw.below(97)).to_string();
    sentence
        .replace("{p}", product)
        .replace("{d}", &date)
        .replace("{n}", &number)
        .replace("{t}", draw.text(&TOWNS))
}
