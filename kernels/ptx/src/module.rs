//! PTX text to kernels.
//!
//! Invariant: a module that parses holds only instructions the interpreter knows; anything else is an error that names
//! the line.

use std::collections::HashMap;

use crate::decode::{Decoder, Symbol};
use crate::instruction::{Instruction, Special};
use crate::memory::Memory;
use crate::registers::note_touches;
use crate::report::ParseError;
use crate::statements::{Statement, StatementKind, split, split_operands};
use crate::types::{Space, Type};

/// A parsed PTX file whose global variables lie in some [`Memory`].
#[derive(Debug)]
pub struct Module {
    target: String,
    kernels: HashMap<String, Kernel>,
}

/// One entry function.
#[derive(Debug)]
pub struct Kernel {
    pub(crate) name: String,
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) code: Vec<Instruction>,
    /// Whether there are asynchronous products in it.
    pub(crate) has_products: bool,
    pub(crate) n_registers: usize,
    pub(crate) n_predicates: usize,
    pub(crate) constants: Vec<(u32, u64)>,
    pub(crate) specials: Vec<(u32, Special)>,
    /// Bytes of static shared memory; what the launch adds begins there.
    pub(crate) shared_bytes: usize,
    pub(crate) local_bytes: usize,
    /// Most threads a block may have.
    pub(crate) max_threads: u32,
}

/// A parameter's place in the block of parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// First byte.
    pub offset: usize,
    /// Size.
    pub n_bytes: usize,
}

impl Kernel {
    /// The parameters in order.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Most threads a block may have: what the kernel was compiled for, or 1024.
    pub fn max_threads(&self) -> u32 {
        self.max_threads
    }

    /// Bytes of shared memory that each block has without being asked for.
    pub fn shared_bytes(&self) -> usize {
        self.shared_bytes
    }
}

/// No card gives a block more.
const MAX_THREADS: u32 = 1024;

impl Module {
    /// Parses `source` and puts its global variables into `memory`.
    pub fn parse(source: &str, memory: &mut Memory) -> Result<Self, ParseError> {
        let target = target(source)?.to_owned();
        let statements = split(source);
        let mut kernels = HashMap::new();
        let mut symbols = HashMap::new();
        let mut index = 0;
        while let Some(statement) = statements.get(index) {
            index += 1;
            let StatementKind::Text(text) = &statement.kind else {
                return Err(error(statement.line, "a scope outside of a function", ""));
            };
            if text.contains(".entry ") {
                let body_len = body_len(&statements[index..])
                    .ok_or_else(|| error(statement.line, "a body without end", text))?;
                let kernel = Kernel::parse(statement, &statements[index..index + body_len], &symbols)?;
                kernels.insert(kernel.name.clone(), kernel);
                index += body_len;
            } else {
                let (name, symbol) = module_variable(statement.line, text, memory)?;
                symbols.insert(name, symbol);
            }
        }
        Ok(Self { target, kernels })
    }

    /// The architecture it was compiled for: `sm_80`.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The entry function of that name.
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.get(name)
    }
}

/// What `.target` names first.
fn target(source: &str) -> Result<&str, ParseError> {
    let named = source
        .lines()
        .find_map(|line| line.trim().strip_prefix(".target "));
    let first = named.and_then(|names| names.split([',', ' ']).next());
    first.ok_or_else(|| error(1, "a module without a target", ""))
}

pub(crate) fn error(line: u32, what: &str, text: &str) -> ParseError {
    ParseError {
        line,
        what: what.to_owned(),
        text: text.to_owned(),
    }
}

/// Statements from the opening brace to the one that closes it.
fn body_len(statements: &[Statement]) -> Option<usize> {
    let mut depth = 0usize;
    for (index, statement) in statements.iter().enumerate() {
        match statement.kind {
            StatementKind::Open => depth += 1,
            StatementKind::Close => depth = depth.checked_sub(1)?,
            _ => {}
        }
        if depth == 0 {
            return Some(index + 1);
        }
    }
    None
}

/// `.space .align 4 .b8 name[128] = {...}`: its name, type, number of elements and initial values.
struct Variable<'a> {
    name: &'a str,
    ty: Type,
    n_elements: usize,
    values: Vec<&'a str>,
}

impl<'a> Variable<'a> {
    fn parse(line: u32, text: &'a str) -> Result<Self, ParseError> {
        let fail = |what: &str| error(line, what, text);
        let (declared, values) = text.split_once('=').unwrap_or((text, ""));
        let words: Vec<&str> = declared.split_whitespace().collect();
        let ty = words
            .iter()
            .find_map(|word| Type::of_name(word.strip_prefix('.')?))
            .ok_or_else(|| fail("a variable without a type"))?;
        let last = words.last().copied().unwrap_or_default();
        let (name, n_elements) = match last.split_once('[') {
            None => (last, 1),
            Some((name, "]")) => (name, 0),
            Some((name, len)) => {
                let len = len
                    .trim_end_matches(']')
                    .parse()
                    .map_err(|_| fail("a length that is no number"))?;
                (name, len)
            }
        };
        let values = values.trim().trim_start_matches('{').trim_end_matches('}');
        let values = split_operands(values);
        Ok(Self {
            name,
            ty,
            n_elements,
            values,
        })
    }

    fn n_bytes(&self) -> usize {
        self.n_elements * self.ty.n_bytes()
    }
}

fn module_variable(line: u32, text: &str, memory: &mut Memory) -> Result<(String, Symbol), ParseError> {
    let variable = Variable::parse(line, text)?;
    let space = text
        .split_whitespace()
        .find_map(|word| Space::of_name(word.strip_prefix('.')?))
        .ok_or_else(|| error(line, "no meaning is known for this outside of a function", text))?;
    let symbol = match space {
        Space::Shared if variable.n_elements == 0 => Symbol::DynamicShared {
            alignment: alignment(text).unwrap_or(1),
        },
        Space::Global => {
            let mut bytes = vec![0u8; variable.n_bytes()];
            let width = variable.ty.n_bytes();
            for (value, bytes) in variable.values.iter().zip(bytes.chunks_exact_mut(width)) {
                let value = immediate(value)
                    .ok_or_else(|| error(line, "an initial value that is no number", text))?;
                bytes.copy_from_slice(&value.to_le_bytes()[..width]);
            }
            let address = memory
                .allocate(bytes.len())
                .and_then(|address| memory.write(address, &bytes).map(|()| address))
                .map_err(|problem| error(line, &problem.to_string(), text))?;
            Symbol::Address(address)
        }
        _ => {
            return Err(error(
                line,
                "a variable of this space outside of a function",
                text,
            ));
        }
    };
    Ok((variable.name.to_owned(), symbol))
}

/// A literal's bits: decimal, hexadecimal, `0f` and `0d` with the bits of a float.
pub(crate) fn immediate(text: &str) -> Option<u64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let digits = digits.strip_suffix('U').unwrap_or(digits);
    let hexadecimal = ["0f", "0F", "0d", "0D", "0x", "0X"]
        .iter()
        .find_map(|prefix| digits.strip_prefix(prefix));
    let value = match hexadecimal {
        Some(digits) => u64::from_str_radix(digits, 16).ok()?,
        None => digits.parse().ok()?,
    };
    Some(if negative { value.wrapping_neg() } else { value })
}

impl Kernel {
    fn parse(
        head: &Statement,
        body: &[Statement],
        symbols: &HashMap<String, Symbol>,
    ) -> Result<Self, ParseError> {
        let StatementKind::Text(text) = &head.kind else {
            return Err(error(head.line, "a function without a head", ""));
        };
        let fail = |what: &str| error(head.line, what, text);
        let (name, rest) = text
            .split_once(".entry ")
            .and_then(|(_, rest)| rest.split_once('('))
            .ok_or_else(|| fail("an entry without parameters"))?;
        let (parameters, directives) = rest
            .split_once(')')
            .ok_or_else(|| fail("an entry without parameters"))?;
        let mut symbols = symbols.clone();
        let parameters = parse_parameters(head.line, parameters, &mut symbols)?;
        let max_threads = match directives.split_once(".maxntid ") {
            None => MAX_THREADS,
            Some((_, sizes)) => sizes
                .split([',', '.'])
                .map_while(|size| size.trim().parse::<u32>().ok())
                .product::<u32>()
                .clamp(1, MAX_THREADS),
        };
        let mut decoder = Decoder::new(symbols);
        declare(body, &mut decoder)?;
        decoder.end_static_shared();
        let mut code = Vec::new();
        for statement in body {
            if let StatementKind::Text(text) = &statement.kind
                && !text.starts_with('.')
            {
                code.push(decoder.instruction(statement.line, text)?);
            }
        }
        let has_products = note_touches(&mut code, decoder.n_registers());
        Ok(Self {
            name: name.trim().to_owned(),
            parameters,
            code,
            has_products,
            n_registers: decoder.n_registers(),
            n_predicates: decoder.n_predicates(),
            constants: decoder.constants(),
            specials: decoder.specials(),
            shared_bytes: decoder.shared_bytes,
            local_bytes: decoder.local_bytes,
            max_threads,
        })
    }
}

/// What `.align` says.
fn alignment(declared: &str) -> Option<usize> {
    let (_, rest) = declared.split_once(".align ")?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Lays the parameters out, each aligned to its own size or as it says.
fn parse_parameters(
    line: u32,
    text: &str,
    symbols: &mut HashMap<String, Symbol>,
) -> Result<Vec<Parameter>, ParseError> {
    let mut end = 0usize;
    let mut parameters = Vec::new();
    for declared in split_operands(text) {
        let variable = Variable::parse(line, declared)?;
        let align = alignment(declared).unwrap_or_else(|| variable.ty.n_bytes());
        let offset = end.next_multiple_of(std::cmp::max(align, 1));
        let n_bytes = variable.n_bytes();
        end = offset + n_bytes;
        symbols.insert(variable.name.to_owned(), Symbol::Parameter(offset as u64));
        parameters.push(Parameter { offset, n_bytes });
    }
    Ok(parameters)
}

/// Notes labels, registers and variables before the code is read.
fn declare(body: &[Statement], decoder: &mut Decoder) -> Result<(), ParseError> {
    let mut n_instructions = 0;
    for statement in body {
        match &statement.kind {
            StatementKind::Label(name) => decoder.label(name, n_instructions),
            StatementKind::Text(text) if text.starts_with(".reg") => {
                decoder.registers(statement.line, text)?
            }
            StatementKind::Text(text) if text.starts_with(".shared") => {
                let variable = Variable::parse(statement.line, text)?;
                decoder.shared(variable.name, variable.n_bytes());
            }
            StatementKind::Text(text) if text.starts_with(".local") => {
                let variable = Variable::parse(statement.line, text)?;
                decoder.local(variable.name, variable.n_bytes());
            }
            StatementKind::Text(text) if text.starts_with(".pragma") => {}
            StatementKind::Text(text) if text.starts_with('.') => {
                return Err(error(
                    statement.line,
                    "no meaning is known for this directive",
                    text,
                ));
            }
            StatementKind::Text(_) => n_instructions += 1,
            StatementKind::Open | StatementKind::Close => {}
        }
    }
    Ok(())
}
