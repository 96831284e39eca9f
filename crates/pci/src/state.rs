//! What is saved of a function: its configuration space, MSI-X table and interrupt conditions,
//! and around them the [`Save`]d image of its model.

use std::marker::PhantomData;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use vfiod_core::{Errno, Error, Format, Persistence, Quiesce, Result, SaveState, Saved, Why};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::function::Function;
use crate::model::{Cx, Model};
use crate::worker::Worker;

/// The saved image of a model: a `repr(C)` structure of fixed size, without padding, that is its
/// own flat form (zerocopy) and its own text form (serde).
pub trait Image:
    Serialize + DeserializeOwned + FromBytes + IntoBytes + Immutable + KnownLayout
{
}

impl<T> Image for T where
    T: Serialize + DeserializeOwned + FromBytes + IntoBytes + Immutable + KnownLayout
{
}

/// Declares structures that are [`Image`]s: `repr(C)`, with the derives for both of their forms.
/// Fields are integers and arrays of them, without gaps between them.
#[macro_export]
macro_rules! image {
    ($($(#[$attribute:meta])* $visibility:vis struct $name:ident { $($fields:tt)* })*) => {$(
        $(#[$attribute])*
        #[derive(
            Clone,
            Debug,
            $crate::image::serde::Serialize,
            $crate::image::serde::Deserialize,
            $crate::image::zerocopy::FromBytes,
            $crate::image::zerocopy::IntoBytes,
            $crate::image::zerocopy::Immutable,
            $crate::image::zerocopy::KnownLayout,
        )]
        #[serde(crate = "vfiod_pci::image::serde", deny_unknown_fields)]
        #[zerocopy(crate = "vfiod_pci::image::zerocopy")]
        #[repr(C)]
        $visibility struct $name { $($fields)* }
    )*};
}

/// A model with a state ([`Model::State`] = [`HasState`]).
pub trait Save: Model {
    /// What it is the state of: the model's name.
    const KIND: &'static str;

    /// The version of [`Save::Image`]; the first is 1, and each change of it is one more.
    const VERSION: u32;

    /// Everything by which a driver or client could notice a difference, and what work was under
    /// way.
    type Image: Image;

    /// Copies the state, by a destructuring of `self`: a new field does not compile until
    /// its author has decided whether it is saved.
    fn save(&self) -> Self::Image;

    /// Restores the state; everything is replaced, whatever the model's state is. Must raise no
    /// interrupt: the function restores the conditions. The image may be hostile: any bytes.
    ///
    /// # Errors
    /// `EINVAL`: values that the model cannot have; the model must then be unchanged.
    fn restore(&mut self, cx: &Cx<Self>, image: Self::Image) -> Result<()>;
}

/// A model that cannot be saved ([`Model::State`] = [`CannotSave`]).
pub trait Unsaved: Model {
    /// Why not, for messages.
    const WHY: &'static str;
}

/// There is nothing to save: a model that was reset has the same state.
#[derive(Debug)]
pub enum Stateless {}

/// The model has a state, and implements [`Save`].
#[derive(Debug)]
pub enum HasState {}

/// The model cannot be saved, and implements [`Unsaved`].
#[derive(Debug)]
pub enum CannotSave {}

/// The model has tasks or a data path, and implements [`Worker`]; `S` is one of the others.
#[derive(Debug)]
pub struct Works<S>(PhantomData<S>);

/// One of [`Stateless`], [`HasState`], [`CannotSave`] and [`Works`].
pub trait StateOf<M: Model>: sealed::Sealed<M> {}

mod sealed {
    use super::*;

    /// How the function reaches the model's state.
    pub trait Sealed<M: Model> {
        /// Why the model cannot be saved.
        const UNSAVED: Option<&'static str> = None;
        /// Size of the image in bytes.
        const LEN: usize = 0;
        /// Whether the model works beside its accesses.
        const WORKS: bool = false;
        fn quiesce(_model: &mut M, _cx: &Cx<M>, _why: Why) -> Quiesce {
            Quiesce::Done
        }
        fn resume(_model: &mut M, _cx: &Cx<M>) {}
        fn save(_model: &M) -> Result<Option<Saved>> {
            Ok(None)
        }
        fn restore(_model: &mut M, _cx: &Cx<M>, saved: Option<&Saved>) -> Result<()> {
            match saved {
                None => Ok(()),
                Some(saved) => {
                    let what = format!("the state of a {}, for a model without one", saved.kind());
                    Err(Error::new(Errno::INVAL, what))
                }
            }
        }
        fn save_image(_model: &M, _image: &mut [u8]) {}
        fn restore_image(_model: &mut M, _cx: &Cx<M>, _image: &[u8]) -> Result<()> {
            Ok(())
        }
    }

    impl<M: Model> Sealed<M> for Stateless {}

    impl<M: Unsaved> Sealed<M> for CannotSave {
        const UNSAVED: Option<&'static str> = Some(M::WHY);
    }

    impl<M: Save> Sealed<M> for HasState {
        const LEN: usize = size_of::<M::Image>();

        fn save(model: &M) -> Result<Option<Saved>> {
            Saved::new(format::<M>(), &model.save()).map(Some)
        }

        fn restore(model: &mut M, cx: &Cx<M>, saved: Option<&Saved>) -> Result<()> {
            let missing = || Error::new(Errno::INVAL, format!("no state of the {}", M::KIND));
            model.restore(cx, saved.ok_or_else(missing)?.read(format::<M>())?)
        }

        fn save_image(model: &M, image: &mut [u8]) {
            image.copy_from_slice(model.save().as_bytes());
        }

        fn restore_image(model: &mut M, cx: &Cx<M>, image: &[u8]) -> Result<()> {
            let image = M::Image::read_from_bytes(image).map_err(|_| wrong_size(M::KIND))?;
            model.restore(cx, image)
        }
    }

    impl<M: Worker<Saves = S>, S: StateOf<M>> Sealed<M> for Works<S> {
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

    fn format<M: Save>() -> Format {
        Format { kind: M::KIND, version: M::VERSION }
    }
}

use sealed::Sealed;

impl<M: Model> StateOf<M> for Stateless {}
impl<M: Unsaved> StateOf<M> for CannotSave {}
impl<M: Save> StateOf<M> for HasState {}
impl<M: Worker<Saves = S>, S: StateOf<M>> StateOf<M> for Works<S> {}

#[cold]
fn wrong_size(kind: &str) -> Error {
    Error::new(Errno::INVAL, format!("the image of a {kind} has another size"))
}

const FUNCTION: Format = Format { kind: "pci function", version: 1 };

/// The state of a function, as text.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FunctionState {
    /// Configuration space, as far as there is something.
    #[serde(with = "hex::serde")]
    config: Vec<u8>,
    /// The MSI-X table, and a byte for each vector: whether its mask bit was written.
    #[serde(with = "hex::serde")]
    msix_table: Vec<u8>,
    #[serde(with = "hex::serde")]
    msix_written: Vec<u8>,
    /// Vectors whose condition is true.
    conditions: Vec<u32>,
    model: Option<Saved>,
}

impl<M: Model> Function<M> {
    /// Whether the model works beside its accesses.
    pub(crate) const WORKS: bool = <M::State as Sealed<M>>::WORKS;

    pub(crate) fn as_persistence(&mut self) -> Persistence<'_> {
        match <M::State as Sealed<M>>::UNSAVED {
            Some(why) => Persistence::Unsaved(why),
            None => Persistence::Saved(self),
        }
    }
}

impl<M: Model> vfiod_core::Worker for Function<M> {
    fn quiesce(&mut self, why: Why) -> Quiesce {
        match self.parts() {
            Ok((model, cx)) => <M::State as Sealed<M>>::quiesce(model, cx, why),
            Err(_) => Quiesce::Done,
        }
    }

    fn resume(&mut self) {
        if let Ok((model, cx)) = self.parts() {
            <M::State as Sealed<M>>::resume(model, cx);
        }
    }
}

impl<M: Model> SaveState for Function<M> {
    fn save(&self) -> Result<Saved> {
        let (table, written) = self.msix_state();
        let state = FunctionState {
            config: self.config_state().to_vec(),
            msix_table: table.to_vec(),
            msix_written: written.to_vec(),
            conditions: self.conditions(),
            model: <M::State as Sealed<M>>::save(self.model_ref())?,
        };
        Saved::new(FUNCTION, &state)
    }

    fn restore(&mut self, saved: &Saved) -> Result<()> {
        let state: FunctionState = saved.read(FUNCTION)?;
        let FunctionState { config, msix_table, msix_written, conditions, model } = state;
        self.check_state(&config, &msix_table, &msix_written, &conditions)?;
        let (subject, cx) = self.parts()?;
        <M::State as Sealed<M>>::restore(subject, cx, model.as_ref())?;
        self.restore_function(&config, &msix_table, &msix_written, conditions);
        Ok(())
    }

    fn image_len(&self) -> usize {
        let (table, written) = self.msix_state();
        self.config_state().len()
            + table.len()
            + written.len()
            + self.conditions_len()
            + <M::State as Sealed<M>>::LEN
    }

    fn save_image(&self, image: &mut [u8]) {
        let (table, written) = self.msix_state();
        let mut rest = image;
        for part in [self.config_state(), table, written] {
            let (into, after) = std::mem::take(&mut rest).split_at_mut(part.len());
            into.copy_from_slice(part);
            rest = after;
        }
        let (conditions, model) = rest.split_at_mut(self.conditions_len());
        self.save_conditions(conditions);
        <M::State as Sealed<M>>::save_image(self.model_ref(), model);
    }

    fn restore_image(&mut self, image: &[u8]) -> Result<()> {
        if image.len() != self.image_len() {
            return Err(wrong_size(FUNCTION.kind));
        }
        let (table, written) = self.msix_state();
        let (config, rest) = image.split_at(self.config_state().len());
        let (table, rest) = rest.split_at(table.len());
        let (written, rest) = rest.split_at(written.len());
        let (conditions, image) = rest.split_at(self.conditions_len());
        let bit = |vector: &u32| conditions[*vector as usize / 8] & 1 << (vector % 8) != 0;
        let conditions: Vec<u32> = (0..conditions.len() as u32 * 8).filter(bit).collect();
        self.check_state(config, table, written, &conditions)?;
        let (model, cx) = self.parts()?;
        <M::State as Sealed<M>>::restore_image(model, cx, image)?;
        self.restore_function(config, table, written, conditions);
        Ok(())
    }
}
