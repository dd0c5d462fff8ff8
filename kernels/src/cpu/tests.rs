//! Every operation against a naive 64-bit reference, its gradient against finite differences, and the same bits from
//! every instruction set and number of threads.

mod attention;
mod attention_paged;
mod bf16;
mod integers;
mod lora_by_row;
mod loss;
mod math;
mod memory;
mod products;
mod rows;
mod support;
