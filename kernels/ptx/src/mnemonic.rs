//! Mnemonics: which operation a statement names.
//!
//! Invariant: a modifier that changes what an instruction does is either honoured here or refused; only those that
//! choose caches or promise uniformity are passed over.

use crate::convert;
use crate::decode::{COPY, Decoder};
use crate::float;
use crate::instruction::{Logic, MatrixType, Operation, Predicate, Shuffle, Vote};
use crate::integer;
use crate::lanes::{Function, lane_function};
use crate::module::immediate;
use crate::types::{Space, Type};

type Decoded = Result<Operation, String>;

fn unknown(parts: &[&str]) -> String {
    format!("the interpreter does not know `{}`", parts.join("."))
}

/// As many operands as an instruction has.
fn exactly<'a, const N: usize>(operands: &[&'a str]) -> Result<[&'a str; N], String> {
    <[&str; N]>::try_from(operands).map_err(|_| format!("{N} operands expected, found {}", operands.len()))
}

impl Decoder {
    /// The operation of a mnemonic, split at its dots, and its operands.
    pub(crate) fn operation(&mut self, parts: &[&str], operands: &[&str]) -> Decoded {
        let ty = parts.last().and_then(|name| Type::of_name(name));
        match parts[0] {
            "mov" => self.move_(parts, operands),
            "cvt" => {
                let function = convert::function(&parts[1..]).ok_or_else(|| unknown(parts))?;
                self.compute(function, operands)
            }
            "cvta" => self.convert_address(parts, operands),
            "setp" => self.compare(parts, operands),
            "selp" => {
                let [to, a, b, by] = exactly(operands)?;
                Ok(Operation::Select {
                    to: self.target(to)?.0,
                    a: self.input(a)?,
                    b: self.input(b)?,
                    by: self.predicate(by)?,
                })
            }
            "and" | "or" | "xor" | "not" if ty == Some(Type::Pred) => self.combine(parts, operands),
            "ld" | "ldu" => self.load(parts, operands),
            "st" => self.store(parts, operands),
            "cp" => self.copy_async(parts, operands),
            "shfl" => self.shuffle(parts, operands),
            "vote" => self.vote(parts, operands),
            "ldmatrix" => self.load_matrix(parts, operands),
            "mma" => self.multiply(parts, operands),
            "wgmma" => self.product(parts, operands),
            "bra" => Ok(Operation::Branch {
                target: self.branch_target(exactly::<1>(operands)?[0])?,
            }),
            "ret" | "exit" => Ok(Operation::Exit),
            "bar" | "barrier" => self.barrier(parts, operands),
            "fence" if parts[1..] == ["proxy", "async", "shared::cta"] => Ok(Operation::ProxyFence),
            "fence" if parts.contains(&"proxy") => Err(unknown(parts)),
            "membar" | "fence" => Ok(Operation::Fence),
            _ => {
                let function =
                    ty.and_then(|ty| integer::function(parts, ty).or_else(|| float::function(parts, ty)));
                self.compute(function.ok_or_else(|| unknown(parts))?, operands)
            }
        }
    }

    fn compute(&mut self, function: Function, operands: &[&str]) -> Decoded {
        let (to, inputs) = operands.split_first().ok_or("no operands")?;
        if inputs.is_empty() || inputs.len() > 4 {
            return Err(format!("1 to 4 inputs expected, found {}", inputs.len()));
        }
        Ok(Operation::Compute {
            function,
            to: self.target(to)?.0,
            inputs: self.inputs(inputs)?,
        })
    }

    fn move_(&mut self, parts: &[&str], operands: &[&str]) -> Decoded {
        let [to, from] = exactly(operands)?;
        let ty = parts
            .get(1)
            .and_then(|name| Type::of_name(name))
            .ok_or_else(|| unknown(parts))?;
        let n_bits = 8 * ty.n_bytes() as u32;
        if ty == Type::Pred {
            if let Some(value) = immediate(from) {
                return self.predicate_constant(to, value != 0);
            }
            let from = self.predicate(from)?;
            return Ok(Operation::Combine {
                logic: Logic::And,
                to: self.predicate(to)?.index,
                a: from,
                b: from,
            });
        }
        if from.starts_with('{') {
            let from = self.input_vector(from)?;
            let bits = n_bits / from.len().max(1) as u32;
            return Ok(Operation::Pack {
                to: self.target(to)?.0,
                from,
                bits,
            });
        }
        if to.starts_with('{') {
            let to = self.targets(to)?;
            let bits = n_bits / to.len().max(1) as u32;
            return Ok(Operation::Unpack {
                to,
                from: self.input(from)?,
                bits,
            });
        }
        self.compute(COPY, operands)
    }

    /// Whatever the target holds, and its opposite: both, or one of them.
    fn predicate_constant(&self, to: &str, value: bool) -> Decoded {
        let a = self.predicate(to)?;
        Ok(Operation::Combine {
            logic: if value { Logic::Or } else { Logic::And },
            to: a.index,
            a,
            b: Predicate { negated: true, ..a },
        })
    }

    fn convert_address(&mut self, parts: &[&str], operands: &[&str]) -> Decoded {
        let space = parts
            .iter()
            .find_map(|name| Space::of_name(name))
            .ok_or_else(|| unknown(parts))?;
        let function = match (space, parts[1] == "to") {
            (Space::Shared, false) => lane_function!(|a: u64| a + Space::Shared.window()),
            (Space::Shared, true) => lane_function!(|a: u64| a.wrapping_sub(Space::Shared.window())),
            (Space::Local, false) => lane_function!(|a: u64| a + Space::Local.window()),
            (Space::Local, true) => lane_function!(|a: u64| a.wrapping_sub(Space::Local.window())),
            _ => COPY,
        };
        self.compute(function, operands)
    }

    /// `setp.lt.f32 p, a, b` or `setp.lt.and.f32 p|q, a, b, r`.
    fn compare(&mut self, parts: &[&str], operands: &[&str]) -> Decoded {
        let (name, logic) = match parts {
            ["setp", name, _] => (*name, None),
            ["setp", name, logic, _] => (*name, Some(Logic::of_name(logic).ok_or_else(|| unknown(parts))?)),
            _ => return Err(unknown(parts)),
        };
        let ty = parts
            .last()
            .and_then(|name| Type::of_name(name))
            .ok_or_else(|| unknown(parts))?;
        let comparison = integer::comparison(name, ty)
            .or_else(|| float::comparison(name, ty))
            .ok_or_else(|| unknown(parts))?;
        let (targets, a, b, with) = match (operands, logic) {
            ([to, a, b], None) => (to, a, b, None),
            ([to, a, b, with], Some(logic)) => (to, a, b, Some((logic, self.predicate(with)?))),
            _ => return Err(format!("`{}` has another number of operands", parts.join("."))),
        };
        let (to, opposite) = targets
            .split_once('|')
            .map_or((*targets, None), |(to, other)| (to, Some(other)));
        let opposite = opposite.map(|name| self.predicate(name)).transpose()?;
        Ok(Operation::Compare {
            comparison,
            to: self.predicate(to)?.index,
            opposite: opposite.map(|predicate| predicate.index),
            inputs: [self.input(a)?, self.input(b)?],
            with,
        })
    }

    fn combine(&mut self, parts: &[&str], operands: &[&str]) -> Decoded {
        if let ["not", _] = parts {
            let [to, a] = exactly(operands)?;
            let a = self.predicate(a)?;
            let a = Predicate {
                negated: !a.negated,
                ..a
            };
            return Ok(Operation::Combine {
                logic: Logic::And,
                to: self.predicate(to)?.index,
                a,
                b: a,
            });
        }
        let logic = Logic::of_name(parts[0]).ok_or_else(|| unknown(parts))?;
        let [to, a, b] = exactly(operands)?;
        Ok(Operation::Combine {
            logic,
            to: self.predicate(to)?.index,
            a: self.predicate(a)?,
            b: self.predicate(b)?,
        })
    }

    fn load(&mut self, parts: &[&str], operands: &[&str]) -> Decoded {
        let [to, address] = exactly(operands)?;
        let ty = parts
            .last()
            .and_then(|name| Type::of_name(name))
            .ok_or_else(|| unknown(parts))?;
        let space = parts
            .iter()
            .find_map(|name| Space::of_name(name))
            .unwrap_or(Space::Generic);
        let targets = self.targets(to)?;
        if space == Space::Param {
            return Ok(Operation::LoadParameter {
                to: targets,
                offset: self.parameter(address)?,
                n_bytes: ty.n_bytes(),
            });
        }
        let signed_to = match ty.is_signed() && targets.len() == 1 {
            true => self.target(to)?.1,
            false => 0,
        };
        Ok(Operation::Load {
            space,
            to: targets,
            address: self.address(address)?,
            n_bytes: ty.n_bytes(),
            signed_to,
        })
    }

    fn store(&mut self, parts: &[&str], operands: &[&str]) -> Decoded {
        let [address, from] = exactly(operands)?;
        let ty = parts
            .last()
            .and_then(|name| Type::of_name(name))
            .ok_or_else(|| unknown(parts))?;
        Ok(Operation::Store {
            space: parts
                .iter()
                .find_map(|name| Space::of_name(name))
                .unwrap_or(Space::Generic),
            from: self.input_vector(from)?,
            address: self.address(address)?,
            n_bytes: ty.n_bytes(),
        })
    }

    fn copy_async(&mut self, parts: &[&str], operands: &[&str]) -> Decoded {
        match parts {
            ["cp", "async", "commit_group"] => Ok(Operation::CopyCommit),
            ["cp", "async", "wait_group"] => {
                let n_left = exactly::<1>(operands)?[0]
                    .parse()
                    .map_err(|_| "how many groups?")?;
                Ok(Operation::CopyWait { n_left })
            }
            ["cp", "async", "ca" | "cg", "shared", "global", ..] => {
                let (to, from, n_bytes, n_read) = match operands {
                    [to, from, n_bytes] => (to, from, n_bytes, None),
                    [to, from, n_bytes, n_read] => (to, from, n_bytes, Some(n_read)),
                    _ => return Err("3 or 4 operands expected".to_owned()),
                };
                Ok(Operation::CopyAsync {
                    to: self.address(to)?,
                    from: self.address(from)?,
                    n_bytes: n_bytes.parse().map_err(|_| "how many bytes?")?,
                    n_read: n_read.map(|n_read| self.input(n_read)).transpose()?,
                })
            }
            _ => Err(unknown(parts)),
        }
    }

    fn shuffle(&mut self, parts: &[&str], operands: &[&str]) -> Decoded {
        let kind = match parts {
            ["shfl", "sync", "up", "b32"] => Shuffle::Up,
            ["shfl", "sync", "down", "b32"] => Shuffle::Down,
            ["shfl", "sync", "bfly", "b32"] => Shuffle::Butterfly,
            ["shfl", "sync", "idx", "b32"] => Shuffle::Index,
            _ => return Err(unknown(parts)),
        };
        let [to, value, lane, clamp, members] = exactly(operands)?;
        let (to, valid) = to
            .split_once('|')
            .map_or((to, None), |(to, valid)| (to, Some(valid)));
        let valid = valid.map(|name| self.predicate(name)).transpose()?;
        Ok(Operation::Shuffle {
            kind,
            to: self.target(to)?.0,
            valid: valid.map(|predicate| predicate.index),
            value: self.input(value)?,
            lane: self.input(lane)?,
            clamp: self.input(clamp)?,
            members: self.input(members)?,
        })
    }

    fn vote(&mut self, parts: &[&str], operands: &[&str]) -> Decoded {
        let [to, by, members] = exactly(operands)?;
        let (kind, to) = match parts {
            ["vote", "sync", "ballot", "b32"] => (Vote::Ballot, self.target(to)?.0),
            ["vote", "sync", "all", "pred"] => (Vote::All, self.predicate(to)?.index),
            ["vote", "sync", "any", "pred"] => (Vote::Any, self.predicate(to)?.index),
            _ => return Err(unknown(parts)),
        };
        Ok(Operation::Vote {
            kind,
            to,
            by: self.predicate(by)?,
            members: self.input(members)?,
        })
    }

    fn load_matrix(&mut self, parts: &[&str], operands: &[&str]) -> Decoded {
        let ["ldmatrix", "sync", "aligned", "m8n8", count, rest @ ..] = parts else {
            return Err(unknown(parts));
        };
        let transposed = match rest {
            ["shared", "b16"] => false,
            ["trans", "shared", "b16"] => true,
            _ => return Err(unknown(parts)),
        };
        let [to, address] = exactly(operands)?;
        let to: Option<Vec<u32>> = self.targets(to)?.into_iter().collect();
        let to = to.ok_or("a target for each matrix expected")?;
        if format!("x{}", to.len()) != *count {
            return Err(format!("{count} targets expected, found {}", to.len()));
        }
        Ok(Operation::LoadMatrix {
            to,
            address: self.address(address)?,
            transposed,
        })
    }

    fn multiply(&mut self, parts: &[&str], operands: &[&str]) -> Decoded {
        let [
            "mma",
            "sync",
            "aligned",
            shape,
            "row",
            "col",
            "f32",
            left,
            right,
            "f32",
        ] = parts
        else {
            return Err(unknown(parts));
        };
        let ty = match (*shape, *left, *right) {
            ("m16n8k16", "bf16", "bf16") => MatrixType::Bf16,
            ("m16n8k16", "f16", "f16") => MatrixType::F16,
            ("m16n8k8", "tf32", "tf32") => MatrixType::Tf32,
            _ => return Err(unknown(parts)),
        };
        let [to, a, b, c] = exactly(operands)?;
        let to: Option<Vec<u32>> = self.targets(to)?.into_iter().collect();
        Ok(Operation::Multiply {
            ty,
            to: sized(to.unwrap_or_default())?,
            a: sized(self.input_vector(a)?)?,
            b: sized(self.input_vector(b)?)?,
            c: sized(self.input_vector(c)?)?,
        })
    }

    fn product(&mut self, parts: &[&str], operands: &[&str]) -> Decoded {
        match (parts, operands) {
            (["wgmma", "fence", "sync", "aligned"], []) => Ok(Operation::ProductFence),
            (["wgmma", "commit_group", "sync", "aligned"], []) => Ok(Operation::ProductCommit),
            (["wgmma", "wait_group", "sync", "aligned"], [n_left]) => Ok(Operation::ProductWait {
                n_left: n_left.parse().map_err(|_| "how many groups?")?,
            }),
            (
                [
                    "wgmma",
                    "mma_async",
                    "sync",
                    "aligned",
                    shape,
                    "f32",
                    "bf16",
                    "bf16",
                ],
                // the sums are added to, nothing is negated or transposed
                [sum, left, right, "1", "1", "1", "0"],
            ) => {
                let sum: Option<Vec<u32>> = self.targets(sum)?.into_iter().collect();
                let sum = sum.ok_or("a register for each sum expected")?;
                if format!("m64n{}k16", sum.len() * 2) != *shape
                    || !matches!(sum.len(), 4..=128)
                    || !sum.len().is_multiple_of(4)
                {
                    return Err(format!("{shape} has another number of sums than {}", sum.len()));
                }
                Ok(Operation::ProductBegin {
                    sum,
                    left: sized(self.input_vector(left)?)?,
                    right: self.input(right)?,
                })
            }
            _ => Err(unknown(parts)),
        }
    }

    fn barrier(&mut self, parts: &[&str], operands: &[&str]) -> Decoded {
        match (parts, operands) {
            (["bar" | "barrier", "warp", "sync"], [members]) => Ok(Operation::WarpBarrier {
                members: self.input(members)?,
            }),
            // One barrier for the whole block: a number of threads or another barrier's number is refused.
            (["bar" | "barrier", "sync"] | ["barrier", "sync", "aligned"], ["0"]) => Ok(Operation::Barrier),
            _ => Err(unknown(parts)),
        }
    }
}

fn sized<const N: usize>(registers: Vec<u32>) -> Result<[u32; N], String> {
    <[u32; N]>::try_from(registers)
        .map_err(|registers| format!("{N} registers expected, found {}", registers.len()))
}
