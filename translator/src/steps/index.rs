//! Finds a step by its address.

/// The numbers of steps by their addresses: a table with open addressing,
/// never more than half full. The addresses are with the steps.
#[derive(Debug)]
pub(super) struct Index {
    /// Numbers of steps, plus 1, or [`FREE`]. Its length is a power of two.
    slots: Vec<u32>,
    used: usize,
}

/// Zero, because zeroed memory is cheap.
const FREE: u32 = 0;

impl Index {
    /// For about `expected` steps.
    pub(super) fn new(expected: usize) -> Self {
        Self { slots: vec![FREE; (2 * expected).next_power_of_two()], used: 0 }
    }

    /// Where the search for `address` begins.
    #[inline]
    fn first_slot(&self, address: u64) -> usize {
        (address.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize & (self.slots.len() - 1)
    }

    /// The number of the step at `address`, if it is known. `address_of` tells
    /// the addresses of known steps.
    #[inline]
    pub(super) fn find(&self, address: u64, address_of: impl Fn(usize) -> u64) -> Option<usize> {
        let mut slot = self.first_slot(address);
        loop {
            let number = match self.slots[slot] {
                FREE => return None,
                entry => entry as usize - 1,
            };
            if address_of(number) == address {
                return Some(number);
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
    }

    /// Notes the `number` of the step at `address`, which is unknown so far.
    #[inline]
    pub(super) fn insert(
        &mut self,
        address: u64,
        number: usize,
        address_of: impl Fn(usize) -> u64,
    ) {
        if 2 * (self.used + 1) > self.slots.len() {
            let larger = vec![FREE; 2 * self.slots.len()];
            let known = std::mem::replace(&mut self.slots, larger);
            for entry in known.into_iter().filter(|&entry| entry != FREE) {
                self.put(address_of(entry as usize - 1), entry);
            }
        }
        self.used += 1;
        self.put(address, u32::try_from(number + 1).expect("fewer steps than addresses"));
    }

    #[inline]
    fn put(&mut self, address: u64, entry: u32) {
        let mut slot = self.first_slot(address);
        while self.slots[slot] != FREE {
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        self.slots[slot] = entry;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_inserted_is_found() {
        let mut index = Index::new(4);
        // Far apart, close together, and one on the other in a small table.
        let address = |i: usize| (i as u64 % 3) << 40 | (i as u64) << 12;
        for i in 0..1000 {
            assert_eq!(index.find(address(i), address), None);
            index.insert(address(i), i, address);
        }
        for i in 0..1000 {
            assert_eq!(index.find(address(i), address), Some(i));
        }
    }
}
