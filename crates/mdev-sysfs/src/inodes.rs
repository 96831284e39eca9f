//! Inode numbers: the same for the same path, always.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::tree::{Fixed, Node};

/// The number of the root.
const ROOT: u64 = 1;

/// Which numbers the kernel knows, and how often it was told.
pub(super) struct Inodes {
    known: HashMap<u64, (Node, u64)>,
}

impl Default for Inodes {
    fn default() -> Self {
        Self { known: HashMap::from([(ROOT, (Node::Fixed(Fixed::Root), 1))]) }
    }
}

impl Inodes {
    /// What has a number that the kernel was told and has not forgotten.
    pub(super) fn node(&self, number: u64) -> Option<&Node> {
        self.known.get(&number).map(|(node, _)| node)
    }

    /// The number of something.
    pub(super) fn number(&self, node: &Node) -> u64 {
        if *node == Node::Fixed(Fixed::Root) {
            return ROOT;
        }
        let mut hasher = DefaultHasher::new();
        node.hash(&mut hasher);
        let mut number = hasher.finish().max(ROOT + 1);
        // Two paths of one hash are next to impossible; the second one that is used moves on.
        while self.known.get(&number).is_some_and(|(other, _)| other != node) {
            number = number.wrapping_add(1).max(ROOT + 1);
        }
        number
    }

    /// The number of something, told to the kernel.
    pub(super) fn tell(&mut self, node: Node) -> u64 {
        let number = self.number(&node);
        self.known.entry(number).or_insert((node, 0)).1 += 1;
        number
    }

    /// The kernel forgets what it was told so many times.
    pub(super) fn forget(&mut self, number: u64, times: u64) {
        if number == ROOT {
            return;
        }
        if let Some((_, told)) = self.known.get_mut(&number) {
            *told = told.saturating_sub(times);
            if *told == 0 {
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
        assert_eq!(inodes.tell(node.clone()), number);
        assert_eq!(inodes.tell(node.clone()), number);
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
