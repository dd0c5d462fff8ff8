//! PTX's scalar types.
//!
//! Invariant: a register holds a value's bits, zero-extended to 64.

/// A type as it ends a mnemonic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    Pred,
    B8,
    B16,
    B32,
    B64,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    Bf16,
    F16x2,
    Bf16x2,
    Tf32,
    F32,
    F64,
}

impl Type {
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        Some(match name {
            "pred" => Self::Pred,
            "b8" => Self::B8,
            "b16" => Self::B16,
            "b32" => Self::B32,
            "b64" => Self::B64,
            "u8" => Self::U8,
            "u16" => Self::U16,
            "u32" => Self::U32,
            "u64" => Self::U64,
            "s8" => Self::S8,
            "s16" => Self::S16,
            "s32" => Self::S32,
            "s64" => Self::S64,
            "f16" => Self::F16,
            "bf16" => Self::Bf16,
            "f16x2" => Self::F16x2,
            "bf16x2" => Self::Bf16x2,
            "tf32" => Self::Tf32,
            "f32" => Self::F32,
            "f64" => Self::F64,
            _ => return None,
        })
    }

    /// Bytes in memory.
    pub(crate) fn n_bytes(self) -> usize {
        match self {
            Self::Pred | Self::B8 | Self::U8 | Self::S8 => 1,
            Self::B16 | Self::U16 | Self::S16 | Self::F16 | Self::Bf16 => 2,
            Self::B32 | Self::U32 | Self::S32 | Self::F32 | Self::Tf32 | Self::F16x2 | Self::Bf16x2 => 4,
            Self::B64 | Self::U64 | Self::S64 | Self::F64 => 8,
        }
    }

    pub(crate) fn is_signed(self) -> bool {
        matches!(self, Self::S8 | Self::S16 | Self::S32 | Self::S64)
    }
}

/// Where an address points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    /// Decided by the address: what `cvta` made, or a plain global address.
    Generic,
    Global,
    Shared,
    Local,
    Param,
}

impl Space {
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        Some(match name {
            "global" | "const" => Self::Global,
            "shared" => Self::Shared,
            "local" => Self::Local,
            "param" => Self::Param,
            _ => return None,
        })
    }

    /// What `cvta` adds to an address of this space to make it generic.
    pub(crate) fn window(self) -> u64 {
        match self {
            Self::Shared => 1 << 48,
            Self::Local => 1 << 49,
            Self::Generic | Self::Global | Self::Param => 0,
        }
    }

    /// The space and plain address that an address of `self` means.
    pub(crate) fn resolve(self, address: u64) -> (Self, u64) {
        if self != Self::Generic {
            return (self, address);
        }
        match address >> 48 {
            0 => (Self::Global, address),
            1 => (Self::Shared, address - Self::Shared.window()),
            2 | 3 => (Self::Local, address - Self::Local.window()),
            _ => (Self::Global, address),
        }
    }
}
