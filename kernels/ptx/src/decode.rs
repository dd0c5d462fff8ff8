//! Operands: names to registers, constants, addresses and targets.
//!
//! Invariant: a name stands for one thing within a kernel; a name nobody declared is an error.

use std::collections::HashMap;

use crate::instruction::{Address, Instruction, Predicate, Special};
use crate::lanes::lane_function;
use crate::module::{error, immediate};
use crate::report::ParseError;
use crate::statements::split_operands;
use crate::types::Type;

/// What a name of the module or the kernel's head stands for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Symbol {
    Address(u64),
    Parameter(u64),
    /// Shared memory whose size the launch says; it begins where the static part ends, at a multiple of its alignment.
    DynamicShared {
        alignment: usize,
    },
}

#[derive(Clone, Copy, Debug)]
enum Name {
    /// A register and its width in bits.
    Register(u32, u32),
    Predicate(u32),
}

/// Gathers a kernel's names and turns statements into instructions.
#[derive(Debug)]
pub(crate) struct Decoder {
    symbols: HashMap<String, Symbol>,
    names: HashMap<String, Name>,
    labels: HashMap<String, usize>,
    constants: HashMap<u64, u32>,
    specials: HashMap<String, (u32, Special)>,
    n_registers: u32,
    n_predicates: u32,
    pub(crate) shared_bytes: usize,
    pub(crate) local_bytes: usize,
}

/// Variables begin at multiples of this: the widest access there is.
const VARIABLE_ALIGNMENT: usize = 128;

impl Decoder {
    pub(crate) fn new(symbols: HashMap<String, Symbol>) -> Self {
        Self {
            symbols,
            names: HashMap::new(),
            labels: HashMap::new(),
            constants: HashMap::new(),
            specials: HashMap::new(),
            n_registers: 0,
            n_predicates: 0,
            shared_bytes: 0,
            local_bytes: 0,
        }
    }

    pub(crate) fn n_registers(&self) -> usize {
        self.n_registers as usize
    }

    pub(crate) fn n_predicates(&self) -> usize {
        self.n_predicates as usize
    }

    pub(crate) fn constants(&self) -> Vec<(u32, u64)> {
        self.constants
            .iter()
            .map(|(&value, &register)| (register, value))
            .collect()
    }

    pub(crate) fn specials(&self) -> Vec<(u32, Special)> {
        self.specials.values().copied().collect()
    }

    pub(crate) fn label(&mut self, name: &str, target: usize) {
        self.labels.insert(name.to_owned(), target);
    }

    pub(crate) fn shared(&mut self, name: &str, n_bytes: usize) {
        let address = self.shared_bytes;
        self.symbols
            .insert(name.to_owned(), Symbol::Address(address as u64));
        self.shared_bytes = (address + n_bytes).next_multiple_of(VARIABLE_ALIGNMENT);
    }

    /// Ends the static part of shared memory.
    pub(crate) fn end_static_shared(&mut self) {
        let alignments = self.symbols.values().filter_map(|symbol| match symbol {
            Symbol::DynamicShared { alignment } => Some(*alignment),
            _ => None,
        });
        let alignment = alignments.max().unwrap_or(1);
        self.shared_bytes = self.shared_bytes.next_multiple_of(alignment.max(1));
    }

    pub(crate) fn local(&mut self, name: &str, n_bytes: usize) {
        let address = self.local_bytes;
        self.symbols
            .insert(name.to_owned(), Symbol::Address(address as u64));
        self.local_bytes = (address + n_bytes).next_multiple_of(VARIABLE_ALIGNMENT);
    }

    /// `.reg .b32 %r<10>` or `.reg .b32 a, b`.
    pub(crate) fn registers(&mut self, line: u32, text: &str) -> Result<(), ParseError> {
        let fail = |what: &str| error(line, what, text);
        let mut words = text.splitn(3, ' ').skip(1);
        let ty = words
            .next()
            .and_then(|word| Type::of_name(word.strip_prefix('.')?));
        let ty = ty.ok_or_else(|| fail("registers of an unknown type"))?;
        for declared in split_operands(words.next().unwrap_or_default()) {
            match declared.split_once('<') {
                None => self.declare(declared, ty),
                Some((prefix, len)) => {
                    let len = len.trim_end_matches('>').parse::<u32>();
                    for index in 0..len.map_err(|_| fail("a number of registers that is none"))? {
                        self.declare(&format!("{prefix}{index}"), ty);
                    }
                }
            }
        }
        Ok(())
    }

    fn declare(&mut self, name: &str, ty: Type) {
        let name = name.to_owned();
        if ty == Type::Pred {
            self.names.insert(name, Name::Predicate(self.n_predicates));
            self.n_predicates += 1;
        } else {
            self.names
                .insert(name, Name::Register(self.n_registers, 8 * ty.n_bytes() as u32));
            self.n_registers += 1;
        }
    }

    /// One statement, guard and all.
    pub(crate) fn instruction(&mut self, line: u32, text: &str) -> Result<Instruction, ParseError> {
        let (guard, rest) = match text.strip_prefix('@') {
            None => (None, text),
            Some(guarded) => {
                let (name, rest) = guarded
                    .split_once(' ')
                    .ok_or_else(|| error(line, "a guard without an instruction", text))?;
                (
                    Some(self.predicate(name).map_err(|what| error(line, &what, text))?),
                    rest,
                )
            }
        };
        let (mnemonic, operands) = rest.split_once(' ').unwrap_or((rest, ""));
        let parts: Vec<&str> = mnemonic.split('.').collect();
        let operands = split_operands(operands);
        let operation = self
            .operation(&parts, &operands)
            .map_err(|what| error(line, &what, text))?;
        Ok(Instruction {
            line,
            guard,
            operation,
            touches: Vec::new(),
        })
    }

    pub(crate) fn predicate(&self, name: &str) -> Result<Predicate, String> {
        let (negated, plain) = match name.strip_prefix('!') {
            None => (false, name),
            Some(rest) => (true, rest),
        };
        match self.names.get(plain) {
            Some(&Name::Predicate(index)) => Ok(Predicate { index, negated }),
            _ => Err(format!("`{name}` is no predicate")),
        }
    }

    /// A register that is written, with its width in bits.
    pub(crate) fn target(&self, name: &str) -> Result<(u32, u32), String> {
        match self.names.get(name) {
            Some(&Name::Register(index, bits)) => Ok((index, bits)),
            _ => Err(format!("`{name}` is no register")),
        }
    }

    /// `{a, b}`, or one register alone; `_` drops a value.
    pub(crate) fn targets(&self, text: &str) -> Result<Vec<Option<u32>>, String> {
        let each = |name: &str| match name {
            "_" => Ok(None),
            name => self.target(name).map(|(index, _)| Some(index)),
        };
        vector(text).into_iter().map(each).collect()
    }

    /// A register, a constant, a special register or the address of a variable.
    pub(crate) fn input(&mut self, text: &str) -> Result<u32, String> {
        if let Some(&Name::Register(index, _)) = self.names.get(text) {
            return Ok(index);
        }
        if let Some(special) = Special::of_name(text) {
            let next = self.n_registers;
            let (index, _) = *self.specials.entry(text.to_owned()).or_insert((next, special));
            self.n_registers = self.n_registers.max(index + 1);
            return Ok(index);
        }
        let value = match self.symbols.get(text) {
            Some(Symbol::Address(address) | Symbol::Parameter(address)) => *address,
            Some(Symbol::DynamicShared { .. }) => self.shared_bytes as u64,
            None => immediate(text).ok_or_else(|| format!("`{text}` is not declared"))?,
        };
        Ok(self.constant(value))
    }

    pub(crate) fn constant(&mut self, value: u64) -> u32 {
        let next = self.n_registers;
        let index = *self.constants.entry(value).or_insert(next);
        self.n_registers = self.n_registers.max(index + 1);
        index
    }

    /// Up to four inputs; a missing one is 0.
    pub(crate) fn inputs(&mut self, texts: &[&str]) -> Result<[u32; 4], String> {
        let zero = self.constant(0);
        let mut inputs = [zero; 4];
        for (input, text) in inputs.iter_mut().zip(texts) {
            *input = self.input(text)?;
        }
        Ok(inputs)
    }

    pub(crate) fn input_vector(&mut self, text: &str) -> Result<Vec<u32>, String> {
        vector(text).into_iter().map(|name| self.input(name)).collect()
    }

    /// `[register]`, `[register+8]` or `[variable+8]`.
    pub(crate) fn address(&mut self, text: &str) -> Result<Address, String> {
        let inner = text
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .ok_or_else(|| format!("`{text}` is no address"))?;
        let (base, offset) = inner.split_once('+').unwrap_or((inner, "0"));
        let offset = immediate(offset.trim()).ok_or_else(|| format!("`{offset}` is no offset"))?;
        Ok(Address {
            base: self.input(base.trim())?,
            offset: offset as i64,
        })
    }

    /// `[parameter+8]`: its place in the block of parameters.
    pub(crate) fn parameter(&self, text: &str) -> Result<usize, String> {
        let inner = text.trim_start_matches('[').trim_end_matches(']');
        let (name, offset) = inner.split_once('+').unwrap_or((inner, "0"));
        match (self.symbols.get(name.trim()), immediate(offset.trim())) {
            (Some(&Symbol::Parameter(begin)), Some(offset)) => Ok((begin + offset) as usize),
            _ => Err(format!("`{text}` is no parameter")),
        }
    }

    pub(crate) fn branch_target(&self, name: &str) -> Result<usize, String> {
        self.labels
            .get(name)
            .copied()
            .ok_or_else(|| format!("there is no label `{name}`"))
    }
}

/// The parts of `{a, b}`; anything else is its own only part.
fn vector(text: &str) -> Vec<&str> {
    match text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
        Some(inner) => split_operands(inner),
        None => vec![text],
    }
}

/// What `mov` does.
pub(crate) const COPY: crate::lanes::Function = lane_function!(|a: u64| a);
