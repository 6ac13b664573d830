//! Finds a step by its address.

/// The numbers of steps by their addresses: a table with open addressing,
/// never more than half full.
#[derive(Debug)]
pub(super) struct Index {
    /// Address and number; [`FREE`] is no step's number. Its length is a
    /// power of two.
    slots: Vec<(u64, u32)>,
    used: usize,
}

const FREE: u32 = u32::MAX;

impl Index {
    /// For about `expected` steps.
    pub(super) fn new(expected: usize) -> Self {
        let size = (2 * expected).next_power_of_two();
        Self { slots: vec![(0, FREE); size], used: 0 }
    }

    /// Where the search for `address` begins: addresses lie close together,
    /// so the low bits of the product tell them apart, and the high ones
    /// regions that lie apart.
    fn first_slot(&self, address: u64) -> usize {
        let product = address.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (product >> 40) as usize & (self.slots.len() - 1)
    }

    /// The number of the step at `address`, if it is known.
    pub(super) fn find(&self, address: u64) -> Option<usize> {
        let mut slot = self.first_slot(address);
        loop {
            match self.slots[slot] {
                (_, FREE) => return None,
                (known, number) if known == address => return Some(number as usize),
                _ => slot = (slot + 1) & (self.slots.len() - 1),
            }
        }
    }

    /// Notes the `number` of the step at `address`, which is unknown so far.
    pub(super) fn insert(&mut self, address: u64, number: usize) {
        if 2 * (self.used + 1) > self.slots.len() {
            let larger = vec![(0, FREE); 2 * self.slots.len()];
            let known = std::mem::replace(&mut self.slots, larger);
            for (address, number) in known.into_iter().filter(|slot| slot.1 != FREE) {
                self.put(address, number);
            }
        }
        self.used += 1;
        self.put(address, u32::try_from(number).expect("fewer steps than addresses"));
    }

    fn put(&mut self, address: u64, number: u32) {
        let mut slot = self.first_slot(address);
        while self.slots[slot].1 != FREE {
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        self.slots[slot] = (address, number);
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
            assert_eq!(index.find(address(i)), None);
            index.insert(address(i), i);
        }
        for i in 0..1000 {
            assert_eq!(index.find(address(i)), Some(i));
        }
    }
}
