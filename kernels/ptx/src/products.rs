//! What a warp knows of its warpgroup's products (`wgmma`) under way.
//!
//! Invariant: a product's registers and what it reads are held from its issue until a wait that covers its group.

use crate::descriptor::Descriptor;
use crate::report::Problem;

/// One product that was issued.
#[derive(Clone, Debug)]
pub(crate) struct Product {
    pub(crate) right: Descriptor,
    /// Rows of the right operand.
    pub(crate) n: usize,
    pub(crate) registers: Vec<u32>,
}

/// A collective of the warpgroup: the place of its instruction, and the descriptor it was given.
pub(crate) type Issued = (usize, u64);

#[derive(Debug)]
pub(crate) struct Products {
    /// Groups, the oldest first; the last is open.
    groups: Vec<Vec<Product>>,
    /// By register, how many products hold it.
    holders: Vec<u32>,
    /// By register, whether something else has touched it since the last `wgmma.fence`.
    touched: Vec<bool>,
    /// Since the block's last barrier.
    pub(crate) issued: Vec<Issued>,
}

impl Products {
    /// Of a kernel with so many registers that products may hold.
    pub(crate) fn new(n_registers: usize) -> Self {
        Self {
            groups: vec![Vec::new()],
            holders: vec![0; n_registers],
            touched: vec![true; n_registers],
            issued: Vec::new(),
        }
    }

    /// Notes that another instruction reads or writes `registers`. Fails where a product holds one.
    pub(crate) fn touch(&mut self, registers: &[u32]) -> Result<(), Problem> {
        for &register in registers {
            if self.holders[register as usize] > 0 {
                return Err(Problem::HeldRegister);
            }
            self.touched[register as usize] = true;
        }
        Ok(())
    }

    /// `wgmma.fence`.
    pub(crate) fn fence(&mut self) {
        self.touched.fill(false);
    }

    /// Takes in a product. Its accumulators may be held by products before it, if of the same shape.
    pub(crate) fn begin(&mut self, product: Product) -> Result<(), Problem> {
        let is_held_otherwise = |held: &&Product| {
            held.n != product.n
                && held
                    .registers
                    .iter()
                    .any(|register| product.registers.contains(register))
        };
        if self.groups.iter().flatten().any(|held| is_held_otherwise(&held)) {
            return Err(Problem::HeldRegister);
        }
        for &register in &product.registers {
            if self.touched[register as usize] {
                return Err(Problem::NoRegisterFence);
            }
            self.holders[register as usize] += 1;
        }
        if let Some(open) = self.groups.last_mut() {
            open.push(product);
        }
        Ok(())
    }

    /// `wgmma.commit_group`.
    pub(crate) fn commit(&mut self) {
        self.groups.push(Vec::new());
    }

    /// `wgmma.wait_group`: lets go of the oldest groups until `n_left` closed ones are under way, and gives their products.
    pub(crate) fn wait(&mut self, n_left: usize) -> Vec<Product> {
        let n_closed = self.groups.len() - 1;
        let done: Vec<Product> = self
            .groups
            .drain(..n_closed.saturating_sub(n_left))
            .flatten()
            .collect();
        for register in done.iter().flat_map(|product| &product.registers) {
            self.holders[*register as usize] -= 1;
        }
        done
    }
}
