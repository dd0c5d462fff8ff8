//! Rotary frequencies as transformers computes them.
//!
//! Invariant: everything is rounded to f32 where PyTorch rounds it, so that long contexts agree in phase.

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    /// How the frequencies are stretched for contexts longer than those of pre-training.
    pub scaling: RopeScaling,
}

/// Changes to the plain frequencies.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    Unscaled,
    /// Every frequency divided by `factor`.
    Linear {
        /// Stretch of the context.
        factor: f32,
    },
    /// Llama 3.1: long waves are divided by `factor`, short ones kept, those between interpolated.
    Llama3 {
        /// Stretch of the context.
        factor: f32,
        /// Waves longer than `original_context_len / low_frequency_factor` are divided.
        low_frequency_factor: f32,
        /// Waves shorter than `original_context_len / high_frequency_factor` are kept.
        high_frequency_factor: f32,
        /// Context length before the stretch.
        original_context_len: f32,
    },
    /// A divisor for each frequency, `[D/2]`, as GGUF files hold them.
    Divisors(Vec<f32>),
}

impl Rope {
    /// What each plain frequency is divided by, `[head_dim / 2]`, as llama.cpp's converter works it out; `None` where
    /// the scaling is not of that kind.
    pub(crate) fn divisors(&self, head_dim: usize) -> Option<Vec<f32>> {
        match &self.scaling {
            RopeScaling::Unscaled | RopeScaling::Linear { .. } => None,
            RopeScaling::Divisors(divisors) => Some(divisors.clone()),
            RopeScaling::Llama3 { .. } => {
                let plain = Self {
                    theta: self.theta,
                    scaling: RopeScaling::Unscaled,
                };
                let scaled = self.frequencies(head_dim);
                let pairs = plain.frequencies(head_dim).into_iter().zip(scaled);
                Some(pairs.map(|(plain, scaled)| plain / scaled).collect())
            }
        }
    }

    /// `[head_dim / 2]` radians per position: `theta^(-2i/D)`, scaled.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        // PyTorch rounds the exponent to f32, takes the power, rounds, then inverts.
        let plain = (0..head_dim / 2).map(|pair| {
            let exponent = (2 * pair) as f32 / head_dim as f32;
            1.0 / self.theta.powf(f64::from(exponent)) as f32
        });
        match &self.scaling {
            RopeScaling::Unscaled => plain.collect(),
            RopeScaling::Linear { factor } => plain.map(|frequency| frequency / factor).collect(),
            RopeScaling::Divisors(divisors) => plain.zip(divisors).map(|(f, divisor)| f / divisor).collect(),
            &RopeScaling::Llama3 {
                factor,
                low_frequency_factor: low,
                high_frequency_factor: high,
                original_context_len: original,
            } => plain
                .map(|frequency| {
                    let wavelength = std::f32::consts::TAU / frequency;
                    if wavelength > original / low {
                        frequency / factor
                    } else if wavelength < original / high {
                        frequency
                    } else {
                        let smooth = (original / wavelength - low) / (high - low);
                        (1.0 - smooth) * frequency / factor + smooth * frequency
                    }
                })
                .collect(),
        }
    }
}
