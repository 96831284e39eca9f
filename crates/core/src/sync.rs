//! The synchronisation primitives of the core: those of std, or a model checker's.
