//! Inode numbers: the same for the same path, always.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::tree::{Fixed, Node};

/// The number of the root.
const ROOT: u64 = 1;

/// The numbers that the kernel knows, and how many references it holds to each.
pub(super) struct Inodes {
    known: HashMap<u64, (Node, u64)>,
}

impl Default for Inodes {
    fn default() -> Self {
        Self { known: HashMap::from([(ROOT, (Node::Fixed(Fixed::Root), 1))]) }
    }
}

impl Inodes {
    /// The node of a number that the kernel knows.
    pub(super) fn node(&self, number: u64) -> Option<&Node> {
        self.known.get(&number).map(|(node, _)| node)
    }

    /// The number of a node.
    pub(super) fn number(&self, node: &Node) -> u64 {
        if *node == Node::Fixed(Fixed::Root) {
            return ROOT;
        }
        let mut hasher = DefaultHasher::new();
        node.hash(&mut hasher);
        let mut number = hasher.finish().max(ROOT + 1);
        // Two paths with one hash are very unlikely; the second one used gets the next number.
        while self.known.get(&number).is_some_and(|(other, _)| other != node) {
            number = number.wrapping_add(1).max(ROOT + 1);
        }
        number
    }

    /// The number of a node, for a reply to the kernel: adds a reference.
    pub(super) fn reference(&mut self, node: Node) -> u64 {
        let number = self.number(&node);
        self.known.entry(number).or_insert((node, 0)).1 += 1;
        number
    }

    /// The kernel drops a number of references.
    pub(super) fn forget(&mut self, number: u64, times: u64) {
        if number == ROOT {
            return;
        }
        if let Some((_, references)) = self.known.get_mut(&number) {
            *references = references.saturating_sub(times);
            if *references == 0 {
                self.known.remove(&number);
            }
        }
    }

    /// How many the kernel knows.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn told_and_forgotten() {
        let mut inodes = Inodes::default();
        let node = Node::Parent("serial".into());
        let number = inodes.number(&node);
        assert_eq!(inodes.node(number), None);
        assert_eq!(inodes.reference(node.clone()), number);
        assert_eq!(inodes.reference(node.clone()), number);
        inodes.forget(number, 1);
        assert_eq!(inodes.node(number), Some(&node));
        inodes.forget(number, 1);
        assert_eq!(inodes.node(number), None);
        assert_eq!(inodes.number(&node), number, "the same path, the same number");
        inodes.forget(ROOT, 5);
        assert_eq!(inodes.node(ROOT), Some(&Node::Fixed(Fixed::Root)));
        assert_eq!(inodes.len(), 1);
    }
}
