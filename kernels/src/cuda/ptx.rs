//! The kernels' PTX, in the program.
//!
//! Invariant: it is what `kernels/cuda/compile.py` makes of the sources beside it; a test compares.

use std::sync::Arc;

use cudarc::driver::sys::CUfunction_attribute;
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, DriverError};
use cudarc::nvrtc::Ptx;

use super::DeviceError;

macro_rules! kernels {
    ($($source:ident $file:literal: $($kernel:ident $name:literal),*;)*) => {
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

            /// Its PTX for the oldest card.
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
    Adamw "adamw": Adamw "adamw", SumSquares "sum_squares";
    Attention "attention":
        AttentionHead64 "attention_64", AttentionHead96 "attention_96",
        AttentionHead128 "attention_128", AttentionHead256 "attention_256";
    AttentionBackward "attention_backward":
        AttentionDelta "attention_delta",
        BackwardKeysHead64 "attention_backward_keys_64", BackwardKeysHead96 "attention_backward_keys_96",
        BackwardKeysHead128 "attention_backward_keys_128", BackwardKeysHead256 "attention_backward_keys_256",
        BackwardQueriesHead64 "attention_backward_queries_64", BackwardQueriesHead96 "attention_backward_queries_96",
        BackwardQueriesHead128 "attention_backward_queries_128",
        BackwardQueriesHead256 "attention_backward_queries_256";
    AttentionPaged "attention_paged":
        PagedHead64 "attention_paged_64", PagedHead96 "attention_paged_96",
        PagedHead128 "attention_paged_128", PagedHead256 "attention_paged_256",
        PagedJoinHead64 "attention_paged_join_64", PagedJoinHead96 "attention_paged_join_96",
        PagedJoinHead128 "attention_paged_join_128", PagedJoinHead256 "attention_paged_join_256",
        WriteKv "write_kv";
    Choose "choose": Choose "choose", Penalize "penalize", Restore "restore";
    CrossEntropy "cross_entropy":
        CrossEntropy "cross_entropy",
        PutRows "put_rows", PutRowsNarrow "put_rows_narrow";
    Elementwise "elementwise": Add "add", AddBias "add_bias";
    Embed "embed": Embed "embed", EmbedNarrow "embed_narrow";
    Gated "gated":
        GatedSilu "gated_silu", GatedGeluTanh "gated_gelu_tanh",
        GatedSiluBackward "gated_silu_backward", GatedGeluTanhBackward "gated_gelu_tanh_backward";
    Lora "lora":
        LoraHRows16 "lora_h_16", LoraHRows32 "lora_h_32", LoraDh "lora_dh", LoraDx "lora_dx";
    LoraGradients "lora_gradients": LoraDa "lora_da", LoraDb "lora_db", LoraAddParts "lora_add_parts";
    MatmulBf16 "matmul_bf16":
        MatmulBf16Rows16 "matmul_bf16_16", MatmulBf16Rows32 "matmul_bf16_32",
        LogitsRows16 "logits_16", LogitsRows32 "logits_32";
    MatmulBf16Tiles "matmul_bf16_tiles":
        LogitsRows128 "logits_bf16_128", MatmulBf16Backward "matmul_bf16_backward";
    MatmulNf4 "matmul_nf4":
        MatmulNf4Rows8 "matmul_nf4_8", MatmulNf4Rows16 "matmul_nf4_16", MatmulNf4Rows32 "matmul_nf4_32",
        LogitsNf4Rows8 "logits_nf4_8", LogitsNf4Rows16 "logits_nf4_16", LogitsNf4Rows32 "logits_nf4_32",
        DequantizeNf4 "dequantize_nf4";
    MatmulNf4Tiles "matmul_nf4_tiles":
        MatmulNf4Rows128 "matmul_nf4_128", LogitsNf4Rows128 "logits_nf4_128",
        MatmulNf4Backward "matmul_nf4_backward";
    QuantizeNf4 "quantize_nf4": QuantizeNf4Bf16 "quantize_nf4_bf16", QuantizeNf4F32 "quantize_nf4_f32";
    RmsNorm "rms_norm":
        RmsNorm "rms_norm", RmsNormNarrow "rms_norm_narrow",
        AddRmsNorm "add_rms_norm", AddRmsNormNarrow "add_rms_norm_narrow",
        RmsNormBackward "rms_norm_backward", RmsNormBackwardNarrow "rms_norm_backward_narrow";
    Rope "rope": Rope "rope";
}

impl Kernel {
    /// Shared memory that a launch asks for beside the kernel's own: each number stands in the kernel's source too. The
    /// smallest card has room for 99 KiB.
    pub(super) fn dynamic_shared_bytes(self) -> u32 {
        match self {
            Self::MatmulNf4Rows8 | Self::LogitsNf4Rows8 => 59_392,
            Self::MatmulNf4Rows16 | Self::LogitsNf4Rows16 => 75_776,
            Self::MatmulNf4Rows32 | Self::LogitsNf4Rows32 => 54_272,
            Self::MatmulNf4Rows128 | Self::LogitsNf4Rows128 => 88_064,
            Self::MatmulNf4Backward => 82_944,
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

/// Loads all modules; a function for each kernel, by its number.
pub(super) fn load(context: &Arc<CudaContext>) -> Result<Vec<CudaFunction>, DeviceError> {
    let mut modules = Vec::with_capacity(Source::ALL.len());
    for source in Source::ALL {
        let module = context
            .load_module(Ptx::from_src(source.ptx()))
            .map_err(|error| DeviceError::driver("compiling the kernels for the device", error))?;
        modules.push(module);
    }
    Kernel::ALL
        .iter()
        .map(|kernel| {
            kernel
                .load(&modules[kernel.source() as usize])
                .map_err(|error| DeviceError::driver("finding a kernel", error))
        })
        .collect()
}
