//! What a call costs. Money is a whole number of nano-dollars; a model that the book does not name has no price,
//! which is not the same as a price of nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::Error;

/// An amount of money: 10⁻⁹ US dollars. Sums saturate, so that a budget can never wrap around.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NanoUsd(pub u64);

impl NanoUsd {
    /// Dollars, for showing.
    pub fn usd(self) -> f64 {
        self.0 as f64 / 1e9
    }

    /// Both together.
    #[must_use]
    pub fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl std::fmt::Display for NanoUsd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let usd = self.usd();
        if self.0 == 0 || usd >= 1.0 {
            write!(f, "${usd:.2}")
        } else {
            write!(f, "${usd:.6}")
        }
    }
}

/// The prices of one model, in nano-dollars per million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Price {
    /// Tokens sent.
    pub input_per_million: NanoUsd,
    /// Tokens received.
    pub output_per_million: NanoUsd,
}

impl Price {
    /// The cost of one call, rounded up to a nano-dollar.
    pub fn cost(self, input_tokens: u64, output_tokens: u64) -> NanoUsd {
        let part = |tokens: u64, price: NanoUsd| u128::from(tokens) * u128::from(price.0);
        let millionths = part(input_tokens, self.input_per_million)
            .saturating_add(part(output_tokens, self.output_per_million));
        NanoUsd(u64::try_from(millionths.div_ceil(1_000_000)).unwrap_or(u64::MAX))
    }
}

/// A dated list of prices.
#[derive(Debug, Clone)]
pub struct PriceBook {
    hash: String,
    prices: BTreeMap<String, Price>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Book {
    /// The only one understood is USD.
    currency: String,
    #[serde(default)]
    model: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    input_usd_per_million_tokens: f64,
    output_usd_per_million_tokens: f64,
    as_of: String,
    source: String,
}

/// Above this a price is a slip of the pen: the dearest model listed anywhere asks under 1,000 dollars a million.
const USD_PER_MILLION_MAX: f64 = 100_000.0;

impl PriceBook {
    /// The book that ships with the program, `data/prices.toml`.
    pub fn builtin() -> Result<Self, Error> {
        Self::from_toml(include_str!("../prices.toml"))
    }

    /// A book of the same form. Every entry must say when (`as_of`) and where (`source`) its price was seen.
    pub fn from_toml(text: &str) -> Result<Self, Error> {
        let invalid = |problem: String| Error::PriceBook { problem };
        let book: Book = toml::from_str(text).map_err(|error| invalid(error.to_string()))?;
        if book.currency != "USD" {
            return Err(invalid(format!(
                "currency is {:?}, expected \"USD\"",
                book.currency
            )));
        }
        let mut prices = BTreeMap::new();
        for entry in book.model {
            let name = entry.name;
            if entry.as_of.trim().is_empty() || entry.source.trim().is_empty() {
                return Err(invalid(format!(
                    "model {name:?} needs a non-empty as_of and source"
                )));
            }
            let price = Price {
                input_per_million: parse_usd(&name, entry.input_usd_per_million_tokens)?,
                output_per_million: parse_usd(&name, entry.output_usd_per_million_tokens)?,
            };
            if prices.insert(name.clone(), price).is_some() {
                return Err(invalid(format!("model {name:?} is listed twice")));
            }
        }
        let hash = Sha256::digest(text)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Ok(Self { hash, prices })
    }

    /// This book with the entries of `over` in place of its own.
    #[must_use]
    pub fn overridden_by(mut self, over: Self) -> Self {
        self.hash = Sha256::digest(format!("{}{}", self.hash, over.hash))
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        self.prices.extend(over.prices);
        self
    }

    /// sha256 of the book's text, hex, to be stored beside every cost.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The prices of `model`, or nothing when the book does not name it.
    pub fn price(&self, model: &str) -> Option<Price> {
        self.prices.get(model).copied()
    }

    /// The cost of one call to `model`, or nothing when its price is unknown.
    pub fn cost(&self, model: &str, input_tokens: u64, output_tokens: u64) -> Option<NanoUsd> {
        Some(self.price(model)?.cost(input_tokens, output_tokens))
    }
}

fn parse_usd(name: &str, usd: f64) -> Result<NanoUsd, Error> {
    if (0.0..=USD_PER_MILLION_MAX).contains(&usd) {
        // At most 1e14 nano-dollars, which a u64 holds.
        Ok(NanoUsd((usd * 1e9).round() as u64))
    } else {
        let problem =
            format!("model {name:?} has the price {usd}, expected 0 to {USD_PER_MILLION_MAX} dollars");
        Err(Error::PriceBook { problem })
    }
}

#[cfg(test)]
mod tests;
