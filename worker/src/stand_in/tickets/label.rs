//! What a ticket is about, as the one line of JSON that the local model must learn to write.
//!
//! Invariant: the team follows from the category.

use serde::{Deserialize, Serialize};

/// The answer to a ticket. Its JSON has exactly these keys, in this order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// What it is about.
    pub category: Category,
    /// Who takes care of it.
    pub team: Team,
    /// How soon.
    pub priority: Priority,
    /// What the customer writes in.
    pub language: Language,
    /// What the customer wants to have made good.
    pub wish: Wish,
    /// The order's number, `K` and four digits, where one is named.
    pub order: Option<String>,
}

/// What a ticket is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Category {
    /// A wrong charge or invoice.
    Billing,
    /// Something that should have arrived.
    Delivery,
    /// Something that does not work.
    Defect,
    /// No way into an account.
    Login,
    /// The end of a contract or order.
    Cancel,
    /// A question before or after buying.
    Question,
}

impl Category {
    /// All of them, in the order of the phrase tables.
    pub const ALL: [Self; 6] = [
        Self::Billing,
        Self::Delivery,
        Self::Defect,
        Self::Login,
        Self::Cancel,
        Self::Question,
    ];
}

/// Who takes care of a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Team {
    /// Billing.
    Finance,
    /// Delivery.
    Logistics,
    /// Defects.
    Repair,
    /// Login.
    Security,
    /// Cancellations.
    Contracts,
    /// Questions.
    Sales,
}

impl Team {
    /// The team for a category.
    pub fn of(category: Category) -> Self {
        match category {
            Category::Billing => Self::Finance,
            Category::Delivery => Self::Logistics,
            Category::Defect => Self::Repair,
            Category::Login => Self::Security,
            Category::Cancel => Self::Contracts,
            Category::Question => Self::Sales,
        }
    }
}

/// How soon a ticket needs an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// The customer says that it can wait.
    Low,
    /// The customer says nothing about it.
    Normal,
    /// The customer says that it cannot wait.
    High,
}

/// What a customer wants to have made good. The values are words of the messages, the key is none: a key that stands
/// in every prompt would drown the word that decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wish {
    /// Nothing is said of it.
    None,
    /// The money back.
    Refund,
    /// Another piece.
    Exchange,
}

/// What a customer writes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Language {
    /// English.
    #[serde(rename = "en")]
    English,
    /// German.
    #[serde(rename = "de")]
    German,
    /// Spanish.
    #[serde(rename = "es")]
    Spanish,
}

impl Language {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::English, Self::German, Self::Spanish];
}

impl Label {
    /// One line of JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}
