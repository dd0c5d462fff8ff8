//! What may differ between layers of one model: windows and rotations.
//!
//! Invariant: both spellings of transformers, one set for all layers or one for each type of them, give the same.

use super::{Reader, RopeFile};
use crate::config::{Family, LAYERS_MAX, Rope, RopeScaling};
use crate::error::Result;

/// A layer with a window, as `layer_types` spells it.
const WINDOWED: &str = "sliding_attention";
/// A layer without one.
const FULL: &str = "full_attention";
/// Of so many layers of Gemma 3 the last has no window, unless the file says otherwise.
const GEMMA3_PATTERN: usize = 6;
/// What transformers takes for the base of the frequencies where the file names none.
const THETA: f64 = 10_000.0;
/// The same for Gemma 3's layers without a window.
const GEMMA3_THETA: f64 = 1_000_000.0;

impl Reader<'_> {
    /// The window of each layer.
    pub(super) fn windows(&self) -> Result<Vec<Option<usize>>> {
        let file = self.file;
        let types = file.layer_types.as_deref();
        if let (Family::Gemma3 | Family::Qwen2 | Family::Qwen3, Some(types)) = (self.family, types) {
            if types.len() != file.num_hidden_layers {
                let expected = format!("a list of {}, one for each layer", file.num_hidden_layers);
                return Err(self.error("layer_types", &expected, types.len()));
            }
            if let Some(other) = types
                .iter()
                .find(|name| ![WINDOWED, FULL].contains(&name.as_str()))
            {
                return Err(self.error("layer_types", &format!("of {FULL} and {WINDOWED}"), other));
            }
        }
        let pattern = file.sliding_window_pattern.unwrap_or(GEMMA3_PATTERN);
        if pattern == 0 {
            return Err(self.error("sliding_window_pattern", "at least 1", 0));
        }
        let typed = |layer: usize| {
            types
                .and_then(|types| types.get(layer))
                .map(|name| name == WINDOWED)
        };
        let is_windowed = |layer: usize| match self.family {
            Family::Llama | Family::Gemma => false,
            Family::Mistral => true,
            Family::Gemma3 => typed(layer).unwrap_or_else(|| !(layer + 1).is_multiple_of(pattern)),
            Family::Qwen2 | Family::Qwen3 => {
                let after_first = || file.max_window_layers.is_some_and(|first| layer >= first);
                file.use_sliding_window == Some(true) && typed(layer).unwrap_or_else(after_first)
            }
        };
        // A lying layer count must not be reserved for before it is checked.
        let layers = 0..file.num_hidden_layers.min(LAYERS_MAX);
        Ok(layers
            .map(|layer| file.sliding_window.filter(|_| is_windowed(layer)))
            .collect())
    }

    /// The rotation, and that of the layers with a window where it is another.
    pub(super) fn ropes(&self) -> Result<(Rope, Option<Rope>)> {
        let file = self.file;
        let is_gemma3 = self.family == Family::Gemma3;
        let all = file.rope_parameters.as_ref().or(file.rope_scaling.as_ref());
        let full = all.and_then(|all| all.full_attention.as_deref()).or(all);
        let default_theta = if is_gemma3 { GEMMA3_THETA } else { THETA };
        let rope = self.rope(full, file.rope_theta.unwrap_or(default_theta))?;
        let windowed = all.and_then(|all| all.sliding_attention.as_deref());
        let local = if is_gemma3 || windowed.is_some() {
            Some(self.rope(windowed, file.rope_local_base_freq.unwrap_or(THETA))?)
        } else {
            None
        };
        Ok((rope, local))
    }

    fn rope(&self, parameters: Option<&RopeFile>, default_theta: f64) -> Result<Rope> {
        let Some(parameters) = parameters else {
            return Ok(Rope {
                theta: default_theta,
                scaling: RopeScaling::Unscaled,
            });
        };
        if let Some(part) = parameters.partial_rotary_factor.filter(|&part| part != 1.0) {
            return Err(self.error("partial_rotary_factor", "1", part));
        }
        let need = |value: Option<f32>, field: &str| {
            let expected = "a positive number beside this rope_type";
            value
                .filter(|value| value.is_finite() && *value > 0.0)
                .ok_or_else(|| self.error(field, expected, "none, or another value"))
        };
        let name = parameters.rope_type.as_deref().or(parameters.r#type.as_deref());
        let scaling = match name.unwrap_or("default") {
            "default" => RopeScaling::Unscaled,
            "linear" => RopeScaling::Linear {
                factor: need(parameters.factor, "factor")?,
            },
            "llama3" => RopeScaling::Llama3 {
                factor: need(parameters.factor, "factor")?,
                low_frequency_factor: need(parameters.low_freq_factor, "low_freq_factor")?,
                high_frequency_factor: need(parameters.high_freq_factor, "high_freq_factor")?,
                original_context_len: need(
                    parameters.original_max_position_embeddings,
                    "original_max_position_embeddings",
                )?,
            },
            other => return Err(self.error("rope_type", "default, linear or llama3", other)),
        };
        Ok(Rope {
            theta: parameters.rope_theta.unwrap_or(default_theta),
            scaling,
        })
    }
}
