//! A Modelfile for Ollama: where the model is, its chat format as a Go template, what ends an answer.
//!
//! Invariant: the Go template gives the text that the model's own template gives, which is tried on conversations with and
//! without a system message before anything is written.

use crate::chat_template::{ChatTemplate, Message, Role};
use crate::error::{Error, Result};
use crate::files::ModelFiles;

/// Longest context that is asked for; Ollama reserves memory for all of it, and its own default cuts long prompts.
const CONTEXT_MAX: usize = 8192;

/// Words that no template writes by itself, and that none changes.
const SYSTEM: &str = "XsystemwordX";
const USERS: [&str; 3] = ["XfirstquestionX", "XsecondquestionX", "XthirdquestionX"];
const ANSWERS: [&str; 2] = ["XfirstanswerX", "XsecondanswerX"];

/// The fixed texts that a chat template puts around the messages. What the tokenizer puts in front of all is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChatFormat {
    /// Before the first question where there is no system message.
    start: String,
    /// Before and after a system message, where it can have one of its own.
    around_system: [String; 2],
    question_to_answer: String,
    answer_to_question: String,
    /// After the last question.
    end: String,
}

impl ChatFormat {
    /// Finds them by rendering conversations. `None` where the template does not only put fixed texts around messages.
    pub(crate) fn of(template: &ChatTemplate, bos: Option<&str>) -> Option<Self> {
        let without_bos = |text: String| match bos.and_then(|bos| text.strip_prefix(bos)) {
            Some(rest) => rest.to_owned(),
            None => text,
        };
        let render = |messages: &[Message]| template.render(messages, true).ok().map(without_bos);
        let (system, talk) = (said(Role::System, SYSTEM), talk());
        let [start, end] = pieces(&render(&talk[..1])?, &USERS[..1])?;
        let two = [USERS[0], ANSWERS[0], USERS[1]];
        let [_, question_to_answer, answer_to_question, _] = pieces(&render(&talk[..3])?, &two)?;
        let with_system = |n: usize| {
            let messages: Vec<Message> = std::iter::once(&system).chain(&talk[..n]).cloned().collect();
            render(&messages)
        };
        // Some templates refuse a system message; it then goes before the first question, as Gemma 3 has it.
        let one_with_system = with_system(1);
        let around_system = match &one_with_system {
            Some(text) => {
                let [before, after, _] = pieces(text, &[SYSTEM, USERS[0]])?;
                [before, after]
            }
            None => [start.clone(), "\n\n".to_owned()],
        };
        let format = Self {
            start,
            around_system,
            question_to_answer,
            answer_to_question,
            end,
        };
        let is_same = (1..=3).all(|turns| {
            let n = 2 * turns - 1;
            render(&talk[..n]) == Some(format.render(None, &talk[..n]))
        });
        let is_same_with_system = match one_with_system {
            Some(text) => text == format.render(Some(SYSTEM), &talk[..1]),
            None => true,
        };
        (is_same && is_same_with_system).then_some(format)
    }

    /// What the Go template gives.
    fn render(&self, system: Option<&str>, messages: &[Message]) -> String {
        let mut text = match system {
            Some(system) => [&self.around_system[0], system, &self.around_system[1]].concat(),
            None => self.start.clone(),
        };
        let mut before = None;
        for message in messages {
            match (before, message.role) {
                (Some(Role::Assistant), Role::User) => text += &self.answer_to_question,
                (Some(Role::User), Role::Assistant) => text += &self.question_to_answer,
                _ => {}
            }
            text += &message.content;
            before = Some(message.role);
        }
        if before == Some(Role::User) {
            text += &self.end;
        }
        text
    }

    /// The same as a Go template of Ollama.
    pub(crate) fn go_template(&self) -> String {
        let [before_system, after_system] = self.around_system.each_ref().map(|text| go_text(text));
        [
            "{{- $before := \"\" }}\n".to_owned(),
            format!("{{{{- if .System }}}}{before_system}{{{{ .System }}}}{after_system}\n"),
            format!("{{{{- else }}}}{}\n", go_text(&self.start)),
            "{{- end }}\n{{- range .Messages }}\n{{- if eq .Role \"user\" }}\n".to_owned(),
            format!(
                "{{{{- if eq $before \"assistant\" }}}}{}{{{{ end }}}}{{{{ .Content }}}}\n",
                go_text(&self.answer_to_question)
            ),
            "{{- $before = \"user\" }}\n{{- else if eq .Role \"assistant\" }}\n".to_owned(),
            format!(
                "{{{{- if eq $before \"user\" }}}}{}{{{{ end }}}}{{{{ .Content }}}}\n",
                go_text(&self.question_to_answer)
            ),
            "{{- $before = \"assistant\" }}\n{{- end }}\n{{- end }}\n".to_owned(),
            format!(
                "{{{{- if eq $before \"user\" }}}}{}{{{{ end }}}}",
                go_text(&self.end)
            ),
        ]
        .concat()
    }
}

/// The Modelfile of a model in the GGUF file `from`, with the adapter in `adapter` where it is a file of its own.
pub(super) fn modelfile(files: &ModelFiles, from: &str, adapter: Option<&str>) -> Result<String> {
    let (tokenizer, template) = (files.tokenizer()?, files.chat_template()?);
    let bos = tokenizer.bos().and_then(|id| tokenizer.token_text(id));
    let format = ChatFormat::of(template, bos.as_deref()).ok_or_else(|| Error::Export {
        what: "to ollama".to_owned(),
        reason: format!(
            "the chat template {} does more than to put fixed texts around the messages, and Ollama's templates are of \
             another language; export to gguf and write a Modelfile with a TEMPLATE of your own",
            template.origin()
        ),
    })?;
    let special = tokenizer.special_tokens();
    let ends = files.config.eos.iter();
    let mut stops: Vec<String> = ends
        .filter_map(|&id| tokenizer.token_text(id))
        .filter(|text| special.contains(text))
        .collect();
    // What the template writes after an answer ends one too, where it is a token of its own.
    let closing = format.answer_to_question.trim_start();
    stops.extend(
        special
            .into_iter()
            .filter(|text| !text.is_empty() && closing.starts_with(text.as_str())),
    );
    let mut text = format!("FROM ./{from}\n");
    if let Some(adapter) = adapter {
        text += &format!("ADAPTER ./{adapter}\n");
    }
    text += &format!("TEMPLATE \"\"\"{}\"\"\"\n", format.go_template());
    let mut written: Vec<&String> = Vec::new();
    for stop in &stops {
        let is_quotable = !stop.contains(['"', '\n', '\r']);
        if is_quotable && !written.contains(&stop) {
            text += &format!("PARAMETER stop \"{stop}\"\n");
            written.push(stop);
        }
    }
    text += &format!(
        "PARAMETER num_ctx {}\n",
        files.config.context_len.min(CONTEXT_MAX)
    );
    Ok(text)
}

fn said(role: Role, content: &str) -> Message {
    Message {
        role,
        content: content.to_owned(),
    }
}

/// Question, answer, question, answer, question.
fn talk() -> Vec<Message> {
    let users = USERS.map(|text| said(Role::User, text));
    let mut answers = ANSWERS.map(|text| said(Role::Assistant, text)).into_iter();
    let turns = users
        .into_iter()
        .flat_map(|user| std::iter::once(user).chain(answers.next()));
    turns.collect()
}

/// The texts before, between and after `words`, each of which occurs once, in this order.
fn pieces<const N: usize>(text: &str, words: &[&str]) -> Option<[String; N]> {
    let mut rest = text;
    let mut found = Vec::new();
    for word in words {
        let (before, after) = rest.split_once(word)?;
        found.push(before.to_owned());
        rest = after;
    }
    found.push(rest.to_owned());
    let is_plain = |piece: &String| !words.iter().any(|word| piece.contains(word));
    found.iter().all(is_plain).then(|| found.try_into().ok())?
}

/// An action that writes `text`; nothing for an empty one. What Ollama's reader of Modelfiles would drop is escaped.
fn go_text(text: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    let mut quoted = String::new();
    for character in text.chars() {
        match character {
            '\n' => quoted += "\\n",
            '\t' => quoted += "\\t",
            '"' => quoted += "\\\"",
            '\\' => quoted += "\\\\",
            ' '..='~' => quoted.push(character),
            _ if character.is_alphanumeric() => quoted.push(character),
            _ => quoted += &format!("\\U{:08x}", u32::from(character)),
        }
    }
    format!("{{{{ \"{quoted}\" }}}}")
}
