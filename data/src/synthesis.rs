//! What a service LLM wrote when asked for more pairs, taken apart into candidates.
//!
//! Invariant: every item of a reply becomes exactly one candidate, a sample or a malformed one with the reason; a
//! reply that breaks off keeps the items before the break.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::sample::{Message, Provenance, Role, Sample, SampleId, ServiceCall};
use crate::text::cut;

/// Items taken from one reply; a call asks for a handful, the bound keeps a runaway reply from filling memory.
pub const ITEMS_MAX: usize = 1000;

/// Bytes of a malformed item that are kept as evidence.
const EVIDENCE_BYTES_MAX: usize = 400;

/// One item of a reply.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Candidate {
    /// A pair, not yet curated.
    Sample(Sample),
    /// Something that is no pair.
    Malformed(Malformed),
}

/// An item that is no pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Malformed {
    /// How it begins.
    pub text: String,
    /// What is wrong with it.
    pub why: String,
}

/// Takes apart a reply of the form `{"contents": [{"instruction", "response"}, …]}`. `system` is the standing
/// instruction that the task's samples begin with; `parents` are the train samples that the call showed.
pub fn candidates(
    reply: &str,
    system: Option<&str>,
    parents: &[SampleId],
    call: &ServiceCall,
) -> Vec<Candidate> {
    let provenance = Provenance::Synthetic {
        parents: parents.to_vec(),
        call: call.clone(),
    };
    let mut items = items(reply);
    if items.len() > ITEMS_MAX {
        items.truncate(ITEMS_MAX);
        items.push(Err(malformed(
            "",
            &format!("the reply has more than {ITEMS_MAX} items; the rest was left"),
        )));
    }
    items
        .into_iter()
        .map(
            |item| match item.and_then(|item| sample(&item, system, &provenance)) {
                Ok(sample) => Candidate::Sample(sample),
                Err(malformed) => Candidate::Malformed(malformed),
            },
        )
        .collect()
}

fn malformed(text: &str, why: &str) -> Malformed {
    Malformed {
        text: cut(text, EVIDENCE_BYTES_MAX).to_owned(),
        why: why.to_owned(),
    }
}

/// The list after `"contents"`, item by item, so that a reply that was cut off keeps what came before.
fn items(reply: &str) -> Vec<Result<Value, Malformed>> {
    let list = reply.find("\"contents\"").and_then(|key| {
        let after = reply
            .get(key + "\"contents\"".len()..)?
            .trim_start()
            .strip_prefix(':')?;
        after.trim_start().strip_prefix('[')
    });
    let Some(mut rest) = list else {
        return vec![Err(malformed(
            reply,
            "the reply holds no list named \"contents\"",
        ))];
    };
    let mut items = Vec::new();
    while items.len() <= ITEMS_MAX {
        rest = rest.trim_start();
        if rest.starts_with(']') {
            break;
        }
        let mut stream = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        match stream.next() {
            Some(Ok(item)) => items.push(Ok(item)),
            Some(Err(error)) => {
                items.push(Err(malformed(
                    rest,
                    &format!("the reply breaks off or is not JSON here: {error}"),
                )));
                break;
            }
            None => {
                items.push(Err(malformed("", "the reply breaks off before its list ends")));
                break;
            }
        }
        rest = rest.get(stream.byte_offset()..).unwrap_or("").trim_start();
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    items
}

fn sample(item: &Value, system: Option<&str>, provenance: &Provenance) -> Result<Sample, Malformed> {
    let field = |name: &str| match item.get(name) {
        Some(Value::String(text)) => Ok(text.trim().to_owned()),
        Some(_) => Err(malformed(&item.to_string(), &format!("{name:?} is not a text"))),
        None => Err(malformed(&item.to_string(), &format!("the item has no {name:?}"))),
    };
    let system = system.map(|text| Message::new(Role::System, text));
    let turns = [
        Message::new(Role::User, field("instruction")?),
        Message::new(Role::Assistant, field("response")?),
    ];
    Sample::new(system.into_iter().chain(turns).collect(), provenance.clone())
        .map_err(|error| malformed(&item.to_string(), &error.to_string()))
}

#[cfg(test)]
mod tests;
