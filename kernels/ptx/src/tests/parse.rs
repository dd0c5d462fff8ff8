use super::{CAPACITY, kernel};
use crate::{Memory, Module, Parameter};

fn error_of(body: &str) -> String {
    Module::parse(&kernel("", body), &mut Memory::new(CAPACITY))
        .unwrap_err()
        .to_string()
}

#[test]
fn what_is_not_known_is_refused_with_its_line() {
    assert_eq!(
        error_of("	frobnicate.b32 %r1, %r2;"),
        "PTX line 24: the interpreter does not know `frobnicate.b32`: `frobnicate.b32 %r1, %r2`"
    );
    assert!(error_of("	add.s32 %r1, %r2, %nothing;").contains("`%nothing` is not declared"));
    assert!(error_of("	add.f32 %r1, %r2;\n	add.ftz.f32 %f1, %f2, %f3;").contains("add.ftz.f32"));
    assert!(error_of("	bra $NOWHERE;").contains("no label"));
    assert!(error_of("	bar.sync 1;").contains("bar.sync"));
    assert!(error_of("	mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 %r1;").contains("does not know"));
    assert!(
        error_of("	ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r1,%r2}, [%r3];")
            .contains("x4 targets expected, found 2")
    );
}

#[test]
fn structures_are_parameters_of_many_bytes() {
    let source = ".target sm_80\n.visible .entry many(.param .u32 a, .param .align 8 .b8 b[24], .param .u16 c) .maxntid 96, 2, 1 { .reg .b32 %r<2>; ld.param.u32 %r1, [b+20]; ret; }";
    let module = Module::parse(source, &mut Memory::new(CAPACITY)).unwrap();
    let kernel = module.kernel("many").unwrap();
    let places: Vec<Parameter> = kernel.parameters().to_vec();
    let at = |offset, n_bytes| Parameter { offset, n_bytes };
    assert_eq!(places, [at(0, 4), at(8, 24), at(32, 2)]);
    assert_eq!(kernel.max_threads(), 192);
}

#[test]
fn tables_of_the_module_lie_in_memory() {
    let source = format!(
        ".global .align 4 .f32 table[3] = {{0f3F800000, 0f40000000, 0f40400000}};\n{}",
        kernel(
            "",
            "	mov.u64 %d1, table;\n	cvta.to.global.u64 %d1, %d1;\n	ld.global.u32 %r1, [%d1+8];\n	st.global.u32 [%out], %r1;"
        )
    );
    let mut out = vec![0; 4];
    super::run(&source, [1, 1], 0, &[0], &mut out).unwrap();
    assert_eq!(super::words(&out), [3f32.to_bits()]);
}

#[test]
fn damaged_text_is_an_error_never_a_panic() {
    let whole = kernel(
        ".shared .align 16 .b8 tile[512];",
        "	add.s32 %r1, %r2, %r3;\n	ld.global.v2.u32 {%r1,%r2}, [%in+8];",
    );
    for len in 0..whole.len() {
        let _ = Module::parse(&whole[..len], &mut Memory::new(CAPACITY));
        let cut = format!("{}{}", &whole[..len], &whole[(len + 7).min(whole.len())..]);
        let _ = Module::parse(&cut, &mut Memory::new(CAPACITY));
    }
}
