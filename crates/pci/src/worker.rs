//! Models with tasks or a data path.

use std::marker::PhantomData;

use vfiod_core::{Quiesce, Result, Saved, Why};

use crate::cx::Cx;
use crate::model::Model;
use crate::save::StateOf;
use crate::save::sealed::Sealed;

/// The model has tasks or a data path, and implements [`Worker`]; `S` is one of the other kinds of
/// [`StateOf`].
#[derive(Debug)]
pub struct Works<S>(PhantomData<S>);

/// [`Works`]: what [`Model::State`] is for a model with tasks or a data path.
pub trait WorkingState {}

impl<S> WorkingState for Works<S> {}

/// A model with tasks or a data path ([`Model::State`] = [`Works`]). Neither method has a default.
///
/// A task is a plain future. It reaches the model by [`Task::step`](crate::Task::step) only, and
/// guest memory by [`Task::dma`](crate::Task::dma); a register access cannot reach guest memory. A
/// future is never saved: the model's state says what is under way, and [`Worker::resume`] starts it
/// again.
pub trait Worker: Model<State: WorkingState> {
    /// Stops the work; see [`vfiod_core::Worker::quiesce`].
    fn quiesce(&mut self, cx: &Cx<Self>, why: Why) -> Quiesce;

    /// Starts the work that the state describes: after the first open, a reset, a save, a restore, and
    /// an abandoned hot reset. Tasks that did not end meanwhile still run
    /// ([`Cx::ensure_task`]).
    fn resume(&mut self, cx: &Cx<Self>);
}

impl<M: Worker, S: StateOf<M>> StateOf<M> for Works<S> {}

impl<M: Worker, S: StateOf<M>> Sealed<M> for Works<S> {
    const UNSAVED: Option<&'static str> = S::UNSAVED;
    const LEN: usize = S::LEN;
    const WORKS: bool = true;

    fn quiesce(model: &mut M, cx: &Cx<M>, why: Why) -> Quiesce {
        model.quiesce(cx, why)
    }
    fn resume(model: &mut M, cx: &Cx<M>) {
        model.resume(cx);
    }
    fn save(model: &M) -> Result<Option<Saved>> {
        S::save(model)
    }
    fn restore(model: &mut M, cx: &Cx<M>, saved: Option<&Saved>) -> Result<()> {
        S::restore(model, cx, saved)
    }
    fn save_image(model: &M, image: &mut [u8]) {
        S::save_image(model, image);
    }
    fn restore_image(model: &mut M, cx: &Cx<M>, image: &[u8]) -> Result<()> {
        S::restore_image(model, cx, image)
    }
}
