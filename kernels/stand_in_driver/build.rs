//! Names the shared library `libcuda.so` to the loader, whatever its file is called.
//!
//! Invariant: the file's own name never is `libcuda.so`: Cargo puts the folder it lies in on the library path of every
//! program it runs, and none of them may take the stand-in for a card by accident.

fn main() {
    // On other systems tests find the driver by its path alone.
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|system| system == "linux") {
        println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libcuda.so");
    }
    println!("cargo::rerun-if-changed=build.rs");
}
