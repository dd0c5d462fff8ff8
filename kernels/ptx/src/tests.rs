mod control;
mod float;
mod integer;
mod matrix;
mod parse;
mod reports;
mod warpgroup;

use crate::{Fault, Launch, Memory, Module, Stats};

/// 64 MiB: far more than any test asks for.
const CAPACITY: usize = 64 << 20;

/// The text of a module with one kernel, `test(in, out)`; `%in` and `%out` hold the pointers and `%tid` the thread.
pub(super) fn kernel(declarations: &str, body: &str) -> String {
    format!(
        ".version 8.4
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 dynamic[];
.visible .entry test(
	.param .u64 test_param_0,
	.param .u64 test_param_1
)
{{
	.reg .pred %p<9>;
	.reg .b16 %h<9>;
	.reg .b32 %r<40>;
	.reg .f32 %f<40>;
	.reg .b64 %d<20>;
	.reg .f64 %g<9>;
	.reg .b64 %in, %out, %at;
	.reg .b32 %tid;
	{declarations}
	ld.param.u64 %in, [test_param_0];
	ld.param.u64 %out, [test_param_1];
	cvta.to.global.u64 %in, %in;
	cvta.to.global.u64 %out, %out;
	mov.u32 %tid, %tid.x;
{body}
	ret;
}}
"
    )
}

/// Runs [`kernel`] on `input` and returns `output`, changed by it, or the first report.
pub(super) fn run(
    source: &str,
    [grid, block]: [u32; 2],
    shared_bytes: usize,
    input: &[u8],
    output: &mut [u8],
) -> Result<Stats, Fault> {
    let mut memory = Memory::new(CAPACITY);
    let module = Module::parse(source, &mut memory).unwrap();
    let addresses = [input, &*output].map(|bytes| {
        let address = memory.allocate(bytes.len()).unwrap();
        memory.write(address, bytes).unwrap();
        address
    });
    let [from, to] = addresses.map(u64::to_le_bytes);
    let launch = Launch {
        kernel: "test",
        grid: [grid, 1, 1],
        block: [block, 1, 1],
        shared_bytes,
        parameters: &[&from, &to],
        steps_max: 1 << 20,
    };
    let stats = module.launch(&mut memory, &launch)?;
    memory.read(addresses[1], output).unwrap();
    Ok(stats)
}

/// One instruction on 32 lanes. `%ra %rb %rc` are the inputs as 32 bits, `%da %db %dc` as 64, `%ha %hb %hc` as 16;
/// `%result` names the register that is kept.
pub(super) fn compute(instructions: &str, result: &str, inputs: [&[u64; 32]; 3]) -> [u64; 32] {
    let declarations = ".reg .b32 %ra, %rb, %rc; .reg .b64 %da, %db, %dc; .reg .b16 %ha, %hb, %hc;";
    let mut body = String::from("	mad.wide.u32 %at, %tid, 8, %in;\n");
    for (index, name) in ["a", "b", "c"].iter().enumerate() {
        for (letter, ty) in [("r", "u32"), ("d", "u64"), ("h", "u16")] {
            body += &format!("	ld.global.{ty} %{letter}{name}, [%at+{}];\n", 256 * index);
        }
    }
    let kept = match &result[1..2] {
        "r" | "f" => "u32",
        "h" => "u16",
        _ => "u64",
    };
    body +=
        &format!("	{instructions}\n	mad.wide.u32 %at, %tid, 8, %out;\n	st.global.{kept} [%at], {result};\n");
    let bytes: Vec<u8> = inputs
        .iter()
        .flat_map(|lanes| lanes.iter())
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let mut out = vec![0u8; 256];
    run(&kernel(declarations, &body), [1, 32], 0, &bytes, &mut out).unwrap();
    std::array::from_fn(|lane| u64::from_le_bytes(out[8 * lane..][..8].try_into().unwrap()))
}

/// The lanes of a list of words.
pub(super) fn words(bytes: &[u8]) -> Vec<u32> {
    bytes
        .chunks_exact(4)
        .map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap()))
        .collect()
}
