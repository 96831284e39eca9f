//! Whether and how a model is saved: the types that [`Model::State`](crate::Model::State) can be,
//! and [`Save`] with the [`Image`] of a model.

use serde::Serialize;
use serde::de::DeserializeOwned;
use vfiod_core::{Errno, Error, Format, Quiesce, Result, Saved, Why};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::cx::Cx;

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

/// A model with a state ([`Model::State`](crate::Model::State) = [`HasState`]).
pub trait Save: Sized {
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

/// A model that cannot be saved ([`Model::State`](crate::Model::State) = [`CannotSave`]).
pub trait Unsaved: Sized {
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

/// One of [`Stateless`], [`HasState`], [`CannotSave`] and [`Works`](crate::Works).
pub trait StateOf<M>: sealed::Sealed<M> {}

pub(crate) mod sealed {
    use super::*;

    /// How the function reaches the model's state.
    pub trait Sealed<M> {
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

    impl<M> Sealed<M> for Stateless {}

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

    fn format<M: Save>() -> Format {
        Format { kind: M::KIND, version: M::VERSION }
    }
}

impl<M> StateOf<M> for Stateless {}
impl<M: Unsaved> StateOf<M> for CannotSave {}
impl<M: Save> StateOf<M> for HasState {}

#[cold]
pub(crate) fn wrong_size(kind: &str) -> Error {
    Error::new(Errno::INVAL, format!("the image of a {kind} has another size"))
}
