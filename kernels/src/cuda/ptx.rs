//! The kernels' PTX, in the program, and which of it a card loads.
//!
//! Invariant: it is what `kernels/cuda/compile.py` makes of the sources beside it; a test compares. A card is given no
//! PTX that it cannot run.

use std::sync::Arc;

use cudarc::driver::sys::CUfunction_attribute;
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, DriverError};
use cudarc::nvrtc::Ptx;

use super::DeviceError;

/// What a source is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// `compute_80`: every card from Ampere on.
    Baseline,
    /// `compute_90a`: Hopper, whose own instructions no other card has, neither older nor newer.
    Hopper,
}

impl Architecture {
    /// Both.
    pub const ALL: &[Self] = &[Self::Baseline, Self::Hopper];

    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Hopper => "Hopper",
        }
    }

    /// Whether a card of this compute capability, major and minor, runs what is compiled for it.
    pub fn runs_on(self, capability: (i32, i32)) -> bool {
        match self {
            Self::Baseline => capability >= (8, 0),
            Self::Hopper => capability == (9, 0),
        }
    }
}

macro_rules! kernels {
    ($($source:ident $file:literal for $architecture:ident: $($kernel:ident $name:literal),*;)*) => {
        /// A `.cu` file.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Source {
            $(#[doc = concat!("`", $file, ".cu`.")] $source,)*
        }

        impl Source {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$source),*];

            /// Its name without the ending.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$source => $file,)*
                }
            }

            /// What it is compiled for.
            pub fn architecture(self) -> Architecture {
                match self {
                    $(Self::$source => Architecture::$architecture,)*
                }
            }

            /// Its PTX.
            pub fn ptx(self) -> &'static str {
                match self {
                    $(Self::$source => include_str!(concat!("../../cuda/ptx/", $file, ".ptx")),)*
                }
            }
        }

        /// An entry function.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kernel {
            $($(#[doc = concat!("`", $name, "`.")] $kernel,)*)*
        }

        impl Kernel {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Self] = &[$($(Self::$kernel,)*)*];

            /// Its name in the PTX.
            pub fn name(self) -> &'static str {
                match self {
                    $($(Self::$kernel => $name,)*)*
                }
            }

            /// Where it is.
            pub fn source(self) -> Source {
                match self {
                    $($(Self::$kernel => Source::$source,)*)*
                }
            }
        }
    };
}

kernels! {
    Adamw "adamw" for Baseline: Adamw "adamw", SumSquares "sum_squares";
    Attention "attention" for Baseline:
        AttentionHead64 "attention_64", AttentionHead96 "attention_96",
        AttentionHead128 "attention_128", AttentionHead256 "attention_256";
    AttentionBackward "attention_backward" for Baseline:
        AttentionDelta "attention_delta",
        BackwardKeysHead64 "attention_backward_keys_64", BackwardKeysHead96 "attention_backward_keys_96",
        BackwardKeysHead128 "attention_backward_keys_128", BackwardKeysHead256 "attention_backward_keys_256",
        BackwardQueriesHead64 "attention_backward_queries_64", BackwardQueriesHead96 "attention_backward_queries_96",
        BackwardQueriesHead128 "attention_backward_queries_128",
        BackwardQueriesHead256 "attention_backward_queries_256";
    AttentionPaged "attention_paged" for Baseline:
        PagedHead64 "attention_paged_64", PagedHead96 "attention_paged_96",
        PagedHead128 "attention_paged_128", PagedHead256 "attention_paged_256",
        PagedJoinHead64 "attention_paged_join_64", PagedJoinHead96 "attention_paged_join_96",
        PagedJoinHead128 "attention_paged_join_128", PagedJoinHead256 "attention_paged_join_256",
        WriteKv "write_kv";
    Choose "choose" for Baseline: Choose "choose", Penalize "penalize", Restore "restore";
    CrossEntropy "cross_entropy" for Baseline:
        CrossEntropy "cross_entropy",
        PutRows "put_rows", PutRowsNarrow "put_rows_narrow";
    Elementwise "elementwise" for Baseline: Add "add", AddBias "add_bias";
    Embed "embed" for Baseline: Embed "embed", EmbedNarrow "embed_narrow";
    Gated "gated" for Baseline:
        GatedSilu "gated_silu", GatedGeluTanh "gated_gelu_tanh",
        GatedSiluBackward "gated_silu_backward", GatedGeluTanhBackward "gated_gelu_tanh_backward";
    Lora "lora" for Baseline:
        LoraHRows16 "lora_h_16", LoraHRows32 "lora_h_32", LoraDh "lora_dh", LoraDx "lora_dx";
    LoraGradients "lora_gradients" for Baseline: LoraDa "lora_da", LoraDb "lora_db", LoraAddParts "lora_add_parts";
    MatmulBf16 "matmul_bf16" for Baseline:
        MatmulBf16Rows16 "matmul_bf16_16", MatmulBf16Rows32 "matmul_bf16_32",
        LogitsRows16 "logits_16", LogitsRows32 "logits_32";
    MatmulBf16Tiles "matmul_bf16_tiles" for Baseline:
        LogitsRows128 "logits_bf16_128", MatmulBf16Backward "matmul_bf16_backward";
    MatmulNf4 "matmul_nf4" for Baseline:
        MatmulNf4Rows8 "matmul_nf4_8", MatmulNf4Rows16 "matmul_nf4_16", MatmulNf4Rows32 "matmul_nf4_32",
        LogitsNf4Rows8 "logits_nf4_8", LogitsNf4Rows16 "logits_nf4_16", LogitsNf4Rows32 "logits_nf4_32",
        DequantizeNf4 "dequantize_nf4";
    MatmulNf4Tiles "matmul_nf4_tiles" for Baseline:
        MatmulNf4Rows128 "matmul_nf4_128", LogitsNf4Rows128 "logits_nf4_128",
        MatmulNf4Backward "matmul_nf4_backward";
    MatmulNf4Hopper "matmul_nf4_hopper" for Hopper: MatmulNf4Hopper "matmul_nf4_hopper";
    MatmulNf4HopperBackward "matmul_nf4_hopper_backward" for Hopper:
        MatmulNf4HopperBackward "matmul_nf4_hopper_backward";
    QuantizeNf4 "quantize_nf4" for Baseline: QuantizeNf4Bf16 "quantize_nf4_bf16", QuantizeNf4F32 "quantize_nf4_f32";
    RmsNorm "rms_norm" for Baseline:
        RmsNorm "rms_norm", RmsNormNarrow "rms_norm_narrow",
        AddRmsNorm "add_rms_norm", AddRmsNormNarrow "add_rms_norm_narrow",
        RmsNormBackward "rms_norm_backward", RmsNormBackwardNarrow "rms_norm_backward_narrow";
    Rope "rope" for Baseline: Rope "rope";
}

impl Kernel {
    /// Shared memory that a launch asks for beside the kernel's own: each number stands in the kernel's source too. The
    /// smallest card has room for 99 KiB, Hopper for 227.
    pub(super) fn dynamic_shared_bytes(self) -> u32 {
        match self {
            Self::MatmulNf4Rows8 | Self::LogitsNf4Rows8 => 59_392,
            Self::MatmulNf4Rows16 | Self::LogitsNf4Rows16 => 75_776,
            Self::MatmulNf4Rows32 | Self::LogitsNf4Rows32 => 54_272,
            Self::MatmulNf4Rows128 | Self::LogitsNf4Rows128 => 88_064,
            Self::MatmulNf4Backward => 82_944,
            Self::MatmulNf4Hopper | Self::MatmulNf4HopperBackward => 194_560,
            Self::LogitsRows128 | Self::MatmulBf16Backward => 98_304,
            _ => 0,
        }
    }

    /// The function in its module, allowed the shared memory that its launches ask for.
    fn load(self, module: &Arc<CudaModule>) -> Result<CudaFunction, DriverError> {
        let function = module.load_function(self.name())?;
        let n_bytes = self.dynamic_shared_bytes();
        if n_bytes > 0 {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(attribute, n_bytes as i32)?;
        }
        Ok(function)
    }
}

/// A function for each kernel, by its number; `None` where it is in no module that was loaded.
type Functions = Vec<Option<CudaFunction>>;

/// Loads the modules that a card of this compute capability runs. Where one of Hopper's own does not load, all of them are
/// left out, and the second part says why. Fails where one for every card does not load, or the device fails.
pub(super) fn load(
    context: &Arc<CudaContext>,
    capability: (i32, i32),
) -> Result<(Functions, Option<String>), DeviceError> {
    let mut functions: Functions = Kernel::ALL.iter().map(|_| None).collect();
    let mut left_out = None;
    for &source in Source::ALL {
        let architecture = source.architecture();
        if !architecture.runs_on(capability) {
            continue;
        }
        match (load_source(source, context, &mut functions), architecture) {
            (Ok(()), _) => {}
            (Err(error @ DeviceError::Driver { .. }), Architecture::Hopper) => {
                left_out = Some(format!("{}.ptx: {error}", source.name()));
            }
            (Err(error), _) => return Err(error),
        }
    }
    Ok((functions, left_out))
}

fn load_source(
    source: Source,
    context: &Arc<CudaContext>,
    functions: &mut Functions,
) -> Result<(), DeviceError> {
    let module = context.load_module(Ptx::from_src(source.ptx()));
    let module =
        module.map_err(|error| DeviceError::driver("compiling the kernels for the device", error))?;
    for &kernel in Kernel::ALL.iter().filter(|kernel| kernel.source() == source) {
        let function = kernel.load(&module);
        functions[kernel as usize] =
            Some(function.map_err(|error| DeviceError::driver("finding a kernel", error))?);
    }
    Ok(())
}
