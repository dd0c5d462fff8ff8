use super::*;

#[test]
fn a_mapped_file_is_its_bytes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let bytes = map_file(&path).unwrap();
    assert_eq!((*bytes).as_ref(), std::fs::read(&path).unwrap());
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("no such file");
    let error = map_file(&path).err().unwrap().to_string();
    assert!(error.contains("no such file"), "{error}");
}
