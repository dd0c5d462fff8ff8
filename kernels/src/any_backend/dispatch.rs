//! How a call reaches the backend that is there.
//!
//! Invariant: operands of another device than the backend's are an error that names the operation.

/// An operation whose operands are all on the device that computes.
macro_rules! on {
    ($backend:ident.$op:ident($($operand:ident),*; $($value:expr),*)) => {
        match ($backend, $($operand),*) {
            (Self::Cpu(backend), $(Either::Cpu($operand)),*) => Backend::$op(backend, $($operand,)* $($value),*),
            (Self::Cuda(backend), $(Either::Cuda($operand)),*) => {
                Backend::$op(&**backend, $($operand,)* $($value),*)
            }
            _ => Err(mixed(stringify!($op))),
        }
    };
}

/// What makes a value.
macro_rules! make {
    ($backend:ident.$op:ident($($value:expr),*)) => {
        match $backend {
            Self::Cpu(backend) => Backend::$op(backend, $($value),*).map(Either::Cpu),
            Self::Cuda(backend) => Backend::$op(&**backend, $($value),*).map(Either::Cuda),
        }
    };
}

/// The same linears with the operands of one device, given to its `$op`.
macro_rules! linears {
    ($backend:expr, $op:ident, $x:expr, $linears:expr, $m:expr, $get:ident, $get_mut:ident) => {{
        const OP: &str = stringify!($op);
        let mut linears = Vec::with_capacity($linears.len());
        for LinearForward { y, weight, lora } in $linears {
            let lora = match lora {
                Some(Lora::One(pair)) => Some(Lora::One(LoraForward {
                    h: pair.h.$get_mut(OP)?,
                    params: pair.params.$get(OP)?,
                    slot: pair.slot,
                    dropout: pair.dropout,
                })),
                Some(Lora::ByRow(pairs)) => Some(Lora::ByRow(LoraByRow {
                    h: pairs.h.$get_mut(OP)?,
                    params: pairs.params.$get(OP)?,
                    pairs: pairs.pairs.$get(OP)?,
                    of_row: pairs.of_row.$get(OP)?,
                })),
                None => None,
            };
            linears.push(LinearForward {
                y: y.$get_mut(OP)?,
                weight: weight.$get(OP)?,
                lora,
            });
        }
        Backend::$op($backend, $x.$get(OP)?, &mut linears, $m)
    }};
}

pub(super) use {linears, make, on};
