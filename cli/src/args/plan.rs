//! The command line of `plan`.
//!
//! Invariant: a size names its unit; what is not given comes from the config, or from its defaults.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{ArgGroup, Args};
use llamaduo_kernels::Device;

use crate::config::sections::Quant;

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("planned").args(["model", "config"]).required(true))]
pub(crate) struct Plan {
    /// Directory, config.json without weights, .gguf file, or a Hugging Face id or known name that is here already.
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<String>,
    /// A config: its base, how it is trained and how it answers.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Override one key of the config, for example --set train.lora_rank=32; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", requires = "config")]
    pub(crate) set: Vec<String>,
    /// Memory of a card that need not be here: 24GB, 22.5GiB, 16000MiB. Without it that of --device cuda:N.
    #[arg(long, value_name = "SIZE")]
    pub(crate) memory: Option<ByteSize>,
    /// How the base is held.
    #[arg(long, value_enum)]
    pub(crate) quant: Option<Quant>,
    /// Rank of the adapter.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) rank: Option<u32>,
    /// Adapters of that rank that answer in one batch; one when absent.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) adapters: Option<u32>,
    /// Rows of a training batch.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rows: Option<u32>,
    /// Tokens of the longest row.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    pub(crate) seq: Option<u32>,
    /// Tokens of a batch that are run at once; one row is never divided.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) tokens: Option<u32>,
    /// Make activations again in the backward instead of keeping them.
    #[arg(long)]
    pub(crate) recompute: bool,
    /// Responses that grow together.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) batch: Option<u32>,
    /// Tokens of a response together with its prompt; without it the longest row and the longest response together.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) context: Option<u32>,
    /// Whose memory it is: the general option.
    #[arg(skip)]
    pub(crate) device: Device,
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ByteSize(pub(crate) u64);

/// Units, the longer names before those that they end with.
const UNITS: [(&str, u64); 5] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("B", 1),
];

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no size; give a number and a unit, such as 24GB or 22.5GiB");
        let (number, unit) = UNITS
            .into_iter()
            .find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))
            .ok_or_else(wrong)?;
        let number: f64 = number.trim_end().parse().map_err(|_| wrong())?;
        let bytes = number * unit as f64;
        // Below 2^63 a float of bytes keeps its value but for the last digits.
        match bytes.is_finite() && bytes >= 1.0 && bytes < 2f64.powi(63) {
            true => Ok(Self(bytes as u64)),
            false => Err(wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [
            ("24GB", 24_000_000_000),
            ("22.5GiB", 24_159_191_040),
            ("16000MiB", 16_777_216_000),
            ("1 MB", 1_000_000),
            ("7B", 7),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["24", "", "GB", "-1GB", "nanGB", "infGB", "1e30GiB", "24gb"] {
            let said = text.parse::<ByteSize>().unwrap_err();
            assert!(said.contains("24GB"), "{said}");
        }
    }
}
