//! Which peer: its number, and lists that only such a number indexes. Pure.
//!
//! The number of a peer is its place among the `[[peer]]` sections. It is not the number of the
//! carriers of a rule ([`CarriersId`](tpo_engine::CarriersId)): the two types keep them apart.

use std::ops::{Index, IndexMut};

/// One peer, by its place among the `[[peer]]` sections of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(usize);

impl PeerId {
    /// The peer with this number.
    pub const fn new(number: usize) -> PeerId {
        PeerId(number)
    }

    /// Its place among the `[[peer]]` sections, the first one 0.
    pub const fn number(self) -> usize {
        self.0
    }
}

/// One of something for each peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ByPeer<T>(Vec<T>);

impl<T> ByPeer<T> {
    /// What `make` makes for each of `peers` peers, in their order.
    pub(crate) fn new(peers: usize, make: impl FnMut(PeerId) -> T) -> ByPeer<T> {
        (0..peers).map(PeerId).map(make).collect()
    }

    /// How many peers there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no peer.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds what belongs to the next peer.
    pub(crate) fn push(&mut self, of_next: T) {
        self.0.push(of_next);
    }

    /// What belongs to a peer, if there is such a peer.
    pub(crate) fn get(&self, peer: PeerId) -> Option<&T> {
        self.0.get(peer.0)
    }

    /// The peers, in their order.
    pub(crate) fn ids(&self) -> impl ExactSizeIterator<Item = PeerId> + use<T> {
        (0..self.len()).map(PeerId)
    }

    /// What belongs to each peer, in their order.
    pub(crate) fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }

    /// The same, to be changed.
    pub fn iter_mut(&mut self) -> std::slice::IterMut<'_, T> {
        self.0.iter_mut()
    }

    /// Each peer with what belongs to it, in their order.
    pub(crate) fn iter_with_id(&self) -> impl ExactSizeIterator<Item = (PeerId, &T)> {
        self.ids().zip(&self.0)
    }
}

impl<T> Default for ByPeer<T> {
    fn default() -> ByPeer<T> {
        ByPeer(Vec::new())
    }
}

impl<T> FromIterator<T> for ByPeer<T> {
    fn from_iter<I: IntoIterator<Item = T>>(of_each: I) -> ByPeer<T> {
        ByPeer(of_each.into_iter().collect())
    }
}

impl<T> IntoIterator for ByPeer<T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a, T> IntoIterator for &'a ByPeer<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl<T> Index<PeerId> for ByPeer<T> {
    type Output = T;

    fn index(&self, peer: PeerId) -> &T {
        &self.0[peer.0]
    }
}

impl<T> IndexMut<PeerId> for ByPeer<T> {
    fn index_mut(&mut self, peer: PeerId) -> &mut T {
        &mut self.0[peer.0]
    }
}
