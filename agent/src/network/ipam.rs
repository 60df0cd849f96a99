//! Which address a container gets: the next free one, going round.
//!
//! Pure. The pool is a table of reservations, not the truth: the truth is in the interfaces that exist, and the pool is
//! filled from them when it is opened and again before it says that nothing is left. Going round keeps an address that
//! was just given back unused for as long as possible, so that a peer's stale connection does not meet a new container.

use std::{collections::BTreeMap, net::Ipv4Addr};

use super::subnet::Subnet;

#[derive(Debug)]
pub(super) struct Pool {
    subnet: Subnet,
    taken: BTreeMap<Ipv4Addr, Since>,
    /// Where the search begins.
    next: Ipv4Addr,
    reading: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Since {
    /// Its interface existed during this reading of the interfaces, or was made after it began.
    Reading(u64),
    /// Its interface is being made.
    Pending,
}

impl Pool {
    pub(super) fn new(subnet: Subnet) -> Self {
        Self { subnet, taken: BTreeMap::new(), next: subnet.first(), reading: 0 }
    }

    /// The next free address, kept for the caller until [`settle`](Self::settle) or [`release`](Self::release).
    pub(super) fn take(&mut self) -> Option<Ipv4Addr> {
        if self.taken.len() >= self.subnet.capacity() {
            return None;
        }
        while self.taken.contains_key(&self.next) {
            self.next = self.after(self.next);
        }
        let address = self.next;
        self.taken.insert(address, Since::Pending);
        self.next = self.after(address);
        Some(address)
    }

    /// The address is on an interface now.
    pub(super) fn settle(&mut self, address: Ipv4Addr) {
        if self.is_usable(address) {
            self.taken.insert(address, Since::Reading(self.reading));
        }
    }

    pub(super) fn release(&mut self, address: Ipv4Addr) {
        self.taken.remove(&address);
    }

    pub(super) fn used(&self) -> usize {
        self.taken.len()
    }

    /// To be called before the interfaces are read; what is settled from here on outlives [`observe`](Self::observe).
    pub(super) fn begin_reading(&mut self) -> u64 {
        self.reading += 1;
        self.reading
    }

    /// Takes what a reading of the interfaces found in place of everything settled before that reading began.
    pub(super) fn observe(&mut self, reading: u64, found: impl IntoIterator<Item = Ipv4Addr>) {
        self.taken.retain(|_, since| *since >= Since::Reading(reading));
        for address in found {
            if self.is_usable(address) {
                self.taken.entry(address).or_insert(Since::Reading(reading));
            }
        }
    }

    /// Begins after the highest address in use, where a pool that had gone on would most likely stand.
    pub(super) fn begin_after_highest(&mut self) {
        if let Some((&highest, _)) = self.taken.last_key_value() {
            self.next = self.after(highest);
        }
    }

    fn is_usable(&self, address: Ipv4Addr) -> bool {
        (self.subnet.first()..=self.subnet.last()).contains(&address)
    }

    fn after(&self, address: Ipv4Addr) -> Ipv4Addr {
        if address >= self.subnet.last() { self.subnet.first() } else { Ipv4Addr::from(u32::from(address) + 1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(subnet: &str) -> Pool {
        Pool::new(subnet.parse().unwrap())
    }

    fn ip(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, last)
    }

    #[test]
    fn an_address_given_back_is_the_last_to_be_used_again() {
        let mut pool = pool("10.0.0.0/29");
        assert_eq!(pool.take(), Some(ip(2)));
        pool.release(ip(2));
        let rest: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(rest, [ip(3), ip(4), ip(5), ip(6), ip(2)]);
        assert_eq!(pool.used(), 5);
        pool.release(ip(5));
        assert_eq!(pool.take(), Some(ip(5)));
    }

    #[test]
    fn a_reading_frees_what_is_gone_and_keeps_what_came_meanwhile() {
        let mut pool = pool("10.0.0.0/29");
        let (gone, stays) = (pool.take().unwrap(), pool.take().unwrap());
        pool.settle(gone);
        pool.settle(stays);
        let pending = pool.take().unwrap();
        let reading = pool.begin_reading();
        let meanwhile = pool.take().unwrap();
        pool.settle(meanwhile);
        pool.observe(reading, [stays, Ipv4Addr::new(192, 0, 2, 1)]);
        assert_eq!(pool.taken.keys().copied().collect::<Vec<_>>(), [stays, pending, meanwhile]);
    }

    #[test]
    fn a_pool_taken_back_goes_on_after_the_highest() {
        let mut pool = pool("10.0.0.0/29");
        let reading = pool.begin_reading();
        pool.observe(reading, [ip(3), ip(6)]);
        pool.begin_after_highest();
        assert_eq!(pool.take(), Some(ip(2)));
        assert_eq!(pool.take(), Some(ip(4)));
    }
}
