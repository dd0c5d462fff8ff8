//! `doctor`: what this machine has to run local models on.
//!
//! Invariant: what is said to work was tried just now: kernels that are said to load were loaded, and Hopper's own compared
//! with the others.

use std::ffi::OsString;
use std::path::PathBuf;

use llamaduo_kernels::cuda::{self, Architecture, Cuda, DeviceInfo};
use llamaduo_kernels::{DeviceError, Isa};
use serde::Serialize;

use crate::error::Result;
use crate::exit::Exit;
use crate::output::Output;

#[derive(Serialize)]
struct Machine {
    cpu: CpuFound,
    cuda: Vec<CudaFound>,
    /// Why no CUDA device is listed; null where there is one.
    no_cuda: Option<String>,
    /// Where the driver keeps kernels that it has compiled; null where it does not keep them.
    kernel_cache: Option<String>,
    /// What `--device auto` means here.
    auto: &'static str,
}

#[derive(Serialize)]
struct CpuFound {
    threads: usize,
    /// The best instruction set of those that there is code for.
    instructions: &'static str,
}

#[derive(Serialize)]
struct CudaFound {
    device: String,
    name: String,
    compute_capability: String,
    memory_gib: f64,
    multiprocessors: usize,
    /// Newest CUDA version the driver knows.
    driver_cuda: String,
    /// Whose kernels were loaded, the best for it last: `baseline` for every card, `Hopper` its own.
    kernels: Vec<&'static str>,
    /// Why Hopper's own kernels are left out where the card could run them; null where they are not.
    kernels_left_out: Option<String>,
    /// Seconds that opening it with all of them took; null where it failed.
    kernels_load_seconds: Option<f64>,
    /// Why the kernels cannot be loaded.
    problem: Option<String>,
}

/// `doctor`.
pub(super) fn doctor(output: &Output) -> Result<Exit> {
    let machine = look();
    output.result(&machine, || machine.text())?;
    Ok(Exit::Ok)
}

fn look() -> Machine {
    let (cuda, no_cuda) = match cuda::devices() {
        Ok(devices) if devices.is_empty() => {
            (Vec::new(), Some("the NVIDIA driver finds no device".to_owned()))
        }
        Ok(devices) => (devices.iter().map(try_device).collect(), None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    Machine {
        cpu: CpuFound {
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            instructions: Isa::detect().name(),
        },
        cuda,
        no_cuda,
        kernel_cache: kernel_cache(|name| std::env::var_os(name)).map(|path| path.display().to_string()),
        auto: "cpu",
    }
}

/// As the driver has it on Linux: below the home directory, unless a variable names another place or turns it off.
fn kernel_cache(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    if variable("CUDA_CACHE_DISABLE").is_some_and(|value| value == "1") {
        return None;
    }
    let named = variable("CUDA_CACHE_PATH").filter(|path| !path.is_empty());
    let home = || variable("HOME").map(|home| PathBuf::from(home).join(".nv/ComputeCache"));
    named.map(PathBuf::from).or_else(home)
}

fn try_device(info: &DeviceInfo) -> CudaFound {
    let opened: std::result::Result<Cuda, DeviceError> = Cuda::new(info.ordinal);
    let loaded = opened.as_ref().map_or(Vec::new(), Cuda::architectures);
    let left_out = opened.as_ref().ok().and_then(Cuda::left_out);
    CudaFound {
        device: format!("cuda:{}", info.ordinal),
        name: info.name.clone(),
        compute_capability: format!("{}.{}", info.capability.0, info.capability.1),
        memory_gib: info.memory_bytes as f64 / f64::from(1 << 30),
        multiprocessors: info.n_multiprocessors,
        driver_cuda: format!("{}.{}", info.cuda_version / 1000, info.cuda_version % 1000 / 10),
        kernels: loaded.into_iter().map(Architecture::name).collect(),
        kernels_left_out: left_out.map(str::to_owned),
        kernels_load_seconds: opened.as_ref().ok().map(|cuda| cuda.load_time().as_secs_f64()),
        problem: opened.err().map(|error| error.to_string()),
    }
}

impl Machine {
    fn text(&self) -> String {
        let mut lines = vec![format!(
            "cpu: {} threads, {}; runs every model",
            self.cpu.threads, self.cpu.instructions
        )];
        for found in &self.cuda {
            lines.push(format!(
                "{}: {}, compute capability {}, {:.1} GiB, {} multiprocessors, driver for CUDA {}",
                found.device,
                found.name,
                found.compute_capability,
                found.memory_gib,
                found.multiprocessors,
                found.driver_cuda
            ));
            lines.push(match (&found.problem, found.kernels_load_seconds) {
                (Some(problem), _) => format!("  its kernels do not load: {problem}"),
                (None, Some(seconds)) => {
                    format!(
                        "  its kernels ({}) load in {seconds:.2} s",
                        found.kernels.join(" and ")
                    )
                }
                (None, None) => String::new(),
            });
            lines.extend(found.kernels_left_out.as_ref().map(|reason| {
                format!("  Hopper's own kernels are left out, training uses the baseline's: {reason}")
            }));
        }
        if !self.cuda.is_empty() {
            lines.push(match &self.kernel_cache {
                Some(directory) => {
                    format!("the driver keeps compiled kernels in {directory}: the first start is the slow one")
                }
                None => "the driver compiles the kernels at each start, since CUDA_CACHE_DISABLE is 1 or there is no home \
                         directory; give it a place by CUDA_CACHE_PATH"
                    .to_owned(),
            });
        }
        if let Some(reason) = &self.no_cuda {
            lines.push(format!("cuda: {reason}"));
        }
        lines.push(format!(
            "--device auto is {}; --device cuda:N runs models on a card, which no one has measured yet",
            self.auto
        ));
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_tells_of_the_cpu_and_of_cuda() {
        let machine = look();
        let text = machine.text();
        assert!(
            text.starts_with("cpu: ") && text.contains("--device auto is cpu"),
            "{text}"
        );
        let instructions = ["AVX-512", "AVX2 with FMA", "portable code"];
        assert!(instructions.contains(&machine.cpu.instructions), "{text}");
        assert_eq!(machine.cuda.is_empty(), machine.no_cuda.is_some());
        let json = serde_json::to_value(&machine).unwrap();
        assert_eq!(json["auto"], "cpu");
    }

    #[test]
    fn the_kernels_that_the_driver_keeps_are_found_where_it_keeps_them() {
        let with = |set: &[(&str, &str)]| {
            let value = |name: &str| {
                set.iter()
                    .find(|(known, _)| *known == name)
                    .map(|(_, value)| value.into())
            };
            kernel_cache(value)
        };
        let home = ("HOME", "/home/a");
        assert_eq!(with(&[home]), Some("/home/a/.nv/ComputeCache".into()));
        assert_eq!(
            with(&[home, ("CUDA_CACHE_PATH", "/cache")]),
            Some("/cache".into())
        );
        assert_eq!(with(&[home, ("CUDA_CACHE_DISABLE", "1")]), None);
        assert_eq!(with(&[home, ("CUDA_CACHE_DISABLE", "0")]), with(&[home]));
        assert_eq!(with(&[]), None);
    }

    /// On a machine with this card.
    fn text_with(found: CudaFound) -> String {
        let machine = Machine {
            cuda: vec![found],
            no_cuda: None,
            ..look()
        };
        machine.text()
    }

    fn old_card() -> CudaFound {
        CudaFound {
            device: "cuda:0".to_owned(),
            name: "Old".to_owned(),
            compute_capability: "7.5".to_owned(),
            memory_gib: 15.9,
            multiprocessors: 40,
            driver_cuda: "12.4".to_owned(),
            kernels: Vec::new(),
            kernels_left_out: None,
            kernels_load_seconds: None,
            problem: Some("too old".to_owned()),
        }
    }

    #[test]
    fn a_card_that_is_too_old_is_listed_with_the_reason() {
        let text = text_with(old_card());
        assert!(
            text.contains("cuda:0: Old, compute capability 7.5, 15.9 GiB"),
            "{text}"
        );
        assert!(text.contains("its kernels do not load: too old"), "{text}");
        assert!(!text.contains("left out"), "{text}");
        assert!(
            text.contains("the driver keeps compiled kernels in") || text.contains("CUDA_CACHE_PATH"),
            "{text}"
        );
    }

    #[test]
    fn kernels_that_are_left_out_are_told_with_the_reason() {
        let text = text_with(CudaFound {
            compute_capability: "9.0".to_owned(),
            kernels: vec![Architecture::Baseline.name()],
            kernels_left_out: Some("a product differs".to_owned()),
            kernels_load_seconds: Some(1.0),
            problem: None,
            ..old_card()
        });
        assert!(text.contains("its kernels (baseline) load in 1.00 s"), "{text}");
        let left_out = "Hopper's own kernels are left out, training uses the baseline's: a product differs";
        assert!(text.contains(left_out), "{text}");
    }
}
