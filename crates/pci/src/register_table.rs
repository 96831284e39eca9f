//! Register tables: one declaration yields a device's fields, what its registers read as, the typed
//! decoding of writes, and its saved image.

use std::ops::Range;

use vfiod_core::{Errno, Error, ReadTraits, Result};

use crate::cx::Cx;
use crate::model::Model;
use crate::registers::Widths;
use crate::save::{Image, Save, StateOf};
use crate::spec::FunctionSpec;

/// Declares a structure by the table of its registers, and implements [`Registers`] for it.
///
/// ```
/// use vfiod_pci::prelude::*;
///
/// const IDLE: u32 = 0;
/// const DONE: u32 = 2;
///
/// registers! {
///     /// An engine. `Write` is what a driver writes to it.
///     #[derive(Debug)]
///     pub struct Engine, enum Write {
///         0x00 _: u32 = |_| 0xc0de;                            // computed: read-only
///         0x08 address: u64 => Address;                        // a write is a Write::Address(u64)
///         0x10 length: u32 = 64 => Length;                     // 64 after power-on
///         0x14 status: u32, in IDLE..=DONE, volatile 3;        // read-only for the driver
///         0x18 _: u32 => Start;                                // write-only: reads as all ones
///         state retries: u8, bits 0x0f;                        // saved, and no register
///         kept limit: u32;                                     // neither: survives a reset
///     }
/// }
///
/// let mut engine = Engine::power_on(4096); // what is kept, in the table's order
/// assert_eq!(engine.decode_write(0x10, &[7, 0, 0, 0]), Some(Write::Length(7)));
/// let mut data = [0; 4];
/// engine.read_register(0x00, &mut data);
/// assert_eq!(data, [0xde, 0xc0, 0, 0]);
/// ```
///
/// A row is one of
///
/// | row | the field | the register |
/// | --- | --- | --- |
/// | `OFFSET field: type = value => Variant` | stored; has `value` after power-on | reads as the field |
/// | `OFFSET _: type = \|device\| … => Variant` | none | reads as what the closure computes from `&Self` |
/// | `OFFSET _: type => Variant` | none | reads as all ones |
/// | `state field: type = value` | stored | none |
/// | `kept field: type` | an argument of `power_on`; neither saved nor reset | none |
///
/// Offsets are in bytes, and ascend. The type of a register is `u8` to `u64` and is its width;
/// `width W4_OR_8` or another of [`Widths`] after a comma allows more. State can be of any type
/// that an [`Image`] can hold. Without `= value` it is zero after power-on. Without `=> Variant` a
/// register is read-only; with it a write becomes that variant of the enum, and changes nothing by
/// itself. After a comma follow, in this order:
///
/// - `in RANGE`, `bits MASK`: the only values that a restore accepts: a saved state may come from
///   anybody.
/// - `volatile MASK`: the bits that differ from run to run; see [`ReadTraits::volatile`].
///
/// Attributes of a row go to the field of the saved image (`#[serde(with = …)]`, for example).
#[macro_export]
macro_rules! registers {
    ($(#[$attribute:meta])* $visibility:vis struct $name:ident, enum $write:ident { $($rows:tt)* }) => {
        $crate::registers!(@rows
            [$(#[$attribute])* $visibility struct $name, enum $write]
            fields [] kept [] map [] reads [] writes [] checks []
            $($rows)*
        );
    };

    // A register with a field.
    (@rows $head:tt fields [$($fields:tt)*] kept $kept:tt map [$($map:tt)*] reads [$($reads:tt)*]
        writes [$($writes:tt)*] checks [$($checks:tt)*]
        $(#[$attribute:meta])* $offset:literal $field:ident: $type:ty $(= $value:expr)?
        $(=> $variant:ident)? $(, width $width:ident)? $(, in $range:expr)? $(, bits $bits:expr)?
        $(, volatile $volatile:expr)?; $($rest:tt)*
    ) => {
        $crate::registers!(@rows $head
            fields [$($fields)* [$(#[$attribute])*] $field: $type = [$($value)?];]
            kept $kept
            map [$($map)* $offset: $type, [$($width)?], [$($volatile)?];]
            reads [$($reads)* $offset => |device| device.$field;]
            writes [$($writes)* $($offset => $variant($type);)?]
            checks [$($checks)* $($field in $range;)? $($field bits $bits;)?]
            $($rest)*
        );
    };

    // A register that is computed.
    (@rows $head:tt fields $fields:tt kept $kept:tt map [$($map:tt)*] reads [$($reads:tt)*]
        writes [$($writes:tt)*] checks $checks:tt
        $(#[$attribute:meta])* $offset:literal _: $type:ty = |$device:pat_param| $value:expr
        $(=> $variant:ident)? $(, width $width:ident)? $(, volatile $volatile:expr)?; $($rest:tt)*
    ) => {
        $crate::registers!(@rows $head fields $fields kept $kept
            map [$($map)* $offset: $type, [$($width)?], [$($volatile)?];]
            reads [$($reads)* $offset => |$device| -> $type { $value };]
            writes [$($writes)* $($offset => $variant($type);)?]
            checks $checks
            $($rest)*
        );
    };

    // A register that can only be written.
    (@rows $head:tt fields $fields:tt kept $kept:tt map [$($map:tt)*] reads [$($reads:tt)*]
        writes [$($writes:tt)*] checks $checks:tt
        $(#[$attribute:meta])* $offset:literal _: $type:ty => $variant:ident $(, width $width:ident)?; $($rest:tt)*
    ) => {
        $crate::registers!(@rows $head fields $fields kept $kept
            map [$($map)* $offset: $type, [$($width)?], [];]
            reads [$($reads)* $offset => |_| <$type>::MAX;]
            writes [$($writes)* $offset => $variant($type);]
            checks $checks
            $($rest)*
        );
    };

    // State without a register.
    (@rows $head:tt fields [$($fields:tt)*] kept $kept:tt map $map:tt reads $reads:tt
        writes $writes:tt checks [$($checks:tt)*]
        $(#[$attribute:meta])* state $field:ident: $type:ty $(= $value:expr)?
        $(, in $range:expr)? $(, bits $bits:expr)?; $($rest:tt)*
    ) => {
        $crate::registers!(@rows $head
            fields [$($fields)* [$(#[$attribute])*] $field: $type = [$($value)?];]
            kept $kept map $map reads $reads writes $writes
            checks [$($checks)* $($field in $range;)? $($field bits $bits;)?]
            $($rest)*
        );
    };

    // Neither state nor register.
    (@rows $head:tt fields $fields:tt kept [$($kept:tt)*] map $map:tt reads $reads:tt
        writes $writes:tt checks $checks:tt
        $(#[$attribute:meta])* kept $field:ident: $type:ty; $($rest:tt)*
    ) => {
        $crate::registers!(@rows $head fields $fields
            kept [$($kept)* $(#[$attribute])* $field: $type;]
            map $map reads $reads writes $writes checks $checks
            $($rest)*
        );
    };

    (@rows [$(#[$attribute:meta])* $visibility:vis struct $name:ident, enum $write:ident]
        fields [$([$(#[$field_attribute:meta])*] $field:ident: $type:ty = [$($value:expr)?];)*]
        kept [$($(#[$kept_attribute:meta])* $kept:ident: $kept_type:ty;)*]
        map [$($offset:literal: $register:ty, [$($width:ident)?], [$($volatile:expr)?];)*]
        reads [$($read:literal => $computed:expr;)*]
        writes [$($written:literal => $variant:ident($written_type:ty);)*]
        checks [$($checked:ident $how:tt $limit:expr;)*]
    ) => {
        $(#[$attribute])*
        $visibility struct $name {
            $($field: $type,)*
            $($(#[$kept_attribute])* $kept: $kept_type,)*
        }

        #[doc = concat!("What a driver writes to the registers of [`", stringify!($name), "`].")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "the table says what they are")]
        pub enum $write {
            $(
                #[doc = concat!("To the register at ", stringify!($written), ".")]
                $variant($written_type),
            )*
        }

        impl $name {
            #[doc = concat!("`", stringify!($name), "` after power-on.")]
            $visibility fn power_on($($kept: $kept_type),*) -> Self {
                Self {
                    $($field: $crate::registers!(@power_on [$($value)?]),)*
                    $($kept,)*
                }
            }
        }

        const _: () = {
            use $crate::image::{serde, zerocopy};

            #[derive(
                Clone,
                Copy,
                Debug,
                serde::Serialize,
                serde::Deserialize,
                zerocopy::FromBytes,
                zerocopy::IntoBytes,
                zerocopy::Immutable,
                zerocopy::KnownLayout,
                zerocopy::Unaligned,
            )]
            #[serde(crate = "vfiod_pci::image::serde", deny_unknown_fields)]
            #[zerocopy(crate = "vfiod_pci::image::zerocopy")]
            #[repr(C, packed)]
            pub struct Image {
                $($(#[$field_attribute])* $field: $type,)*
            }

            const MAP: $crate::RegisterMap<u64> = $crate::RegisterMap::new(&[$(
                $crate::Register::new(
                    $offset,
                    $crate::registers!(@width $register, [$($width)?]),
                    $offset,
                )
                $(.volatile($volatile as u64))?,
            )*]);

            impl $crate::Registers for $name {
                type Write = $write;
                type Image = Image;

                fn read_register(&self, offset: u64, data: &mut [u8]) {
                    MAP.read(offset, data, |register| self.register(register));
                }

                fn register_traits(offset: u64, len: usize) -> $crate::image::ReadTraits {
                    MAP.read_traits(offset, len)
                }

                fn find_register(range: std::ops::Range<u64>) -> Option<u64> {
                    MAP.find_in(range)
                }

                fn decode_write(&self, offset: u64, data: &[u8]) -> Option<$write> {
                    match MAP.merge(offset, data, |register| self.register(register))? {
                        $(($written, value) => Some($write::$variant(value as $written_type)),)*
                        _ => None,
                    }
                }

                fn reset_registers(&mut self) {
                    $(self.$field = $crate::registers!(@power_on [$($value)?]);)*
                }

                fn save_registers(&self) -> Image {
                    Image { $($field: self.$field,)* }
                }

                fn restore_registers(&mut self, image: Image) -> $crate::image::Result<()> {
                    $($crate::registers!(@check image, $checked $how $limit);)*
                    $(self.$field = image.$field;)*
                    Ok(())
                }
            }

            impl $name {
                /// The value of a register, by its offset.
                fn register(&self, register: u64) -> u64 {
                    match register {
                        $($read => {
                            let read: fn(&Self) -> $register = $computed;
                            read(self).into()
                        })*
                        _ => u64::MAX,
                    }
                }
            }
        };
    };

    (@power_on [$value:expr]) => { $value };
    (@power_on []) => { $crate::image::zerocopy::FromZeros::new_zeroed() };
    (@width $type:ty, [$width:ident]) => { $crate::Widths::$width };
    (@width $type:ty, []) => { <$type as $crate::image::RegisterValue>::WIDTH };
    (@check $image:ident, $field:ident in $range:expr) => {
        let (value, range) = ($image.$field, $range);
        if !range.contains(&value) {
            return Err($crate::image::out_of_range(stringify!($field), value.into(), &range));
        }
    };
    (@check $image:ident, $field:ident bits $bits:expr) => {
        let (value, bits) = ($image.$field, $bits);
        if value & !bits != 0 {
            return Err($crate::image::unknown_bits(stringify!($field), value.into(), bits.into()));
        }
    };
}

/// A type that a register can have.
pub trait RegisterValue {
    /// Its width.
    const WIDTH: Widths;
}

impl RegisterValue for u8 {
    const WIDTH: Widths = Widths::W1;
}

impl RegisterValue for u16 {
    const WIDTH: Widths = Widths::W2;
}

impl RegisterValue for u32 {
    const WIDTH: Widths = Widths::W4;
}

impl RegisterValue for u64 {
    const WIDTH: Widths = Widths::W8;
}

#[cold]
#[doc(hidden)]
pub fn out_of_range(field: &str, value: u64, range: &dyn std::fmt::Debug) -> Error {
    Error::new(Errno::INVAL, format!("{field} is {value}, which is not in {range:?}"))
}

#[cold]
#[doc(hidden)]
pub fn unknown_bits(field: &str, value: u64, bits: u64) -> Error {
    Error::new(Errno::INVAL, format!("{field} is {value:#x}, with bits outside {bits:#x}"))
}

/// A structure of [`registers!`](crate::registers!): its registers, and its saved image.
pub trait Registers {
    /// What a driver writes: a variant for each register that can be written.
    type Write;

    /// The saved image: every field of the structure but those that are kept.
    type Image: Image;

    /// Answers a read; all ones where there is no register, as a bus would. Changes nothing.
    fn read_register(&self, offset: u64, data: &mut [u8]);

    /// What such a read does; see [`Model::read_traits`].
    fn register_traits(offset: u64, len: usize) -> ReadTraits;

    /// The offset of the first register that lies in a range, or partly; see [`Model::find_register`].
    fn find_register(range: Range<u64>) -> Option<u64>;

    /// What a driver has written. `None`: there is no register, it is read-only, or it does not take
    /// this width. Changes nothing.
    fn decode_write(&self, offset: u64, data: &[u8]) -> Option<Self::Write>;

    /// Sets every field that is not kept to its value after power-on.
    fn reset_registers(&mut self);

    /// Copies every field that is not kept.
    fn save_registers(&self) -> Self::Image;

    /// Sets every field that is not kept. The image may be hostile: any bytes.
    ///
    /// # Errors
    /// `EINVAL`: a value that the table does not allow; nothing was changed.
    fn restore_registers(&mut self, image: Self::Image) -> Result<()>;
}

/// A device that is its registers: they are in one BAR, and what the table declares is its state.
/// It becomes a [`Model`] that reads, resets, saves and restores by the table.
///
/// A model whose reads have an effect, or with more BARs, implements [`Model`] and
/// [`Save`] itself, and may use [`Registers`] for a part.
pub trait RegisterModel: Registers + Sized + Send + 'static {
    /// [`HasState`](crate::HasState); within [`Works`](crate::Works) for a model that has tasks or a
    /// data path.
    type State: StateOf<Self>;

    /// What it is the state of: the model's name. See [`Save::KIND`].
    const KIND: &'static str;

    /// The version of the table, as far as it is saved; the first is 1, and each change is one more.
    const VERSION: u32;

    /// The BAR of the registers.
    const BAR: u8 = 0;

    /// Ids, BARs, capabilities; see [`Model::spec`].
    fn spec(&self) -> FunctionSpec;

    /// A driver writes a register.
    fn write(&mut self, cx: &Cx<Self>, write: Self::Write);

    /// The device is being registered; see [`Model::init`].
    ///
    /// # Errors
    /// An error refuses the registration.
    fn init(&mut self, _cx: &Cx<Self>) -> Result<()> {
        Ok(())
    }
}

impl<M: RegisterModel> Model for M {
    type State = <M as RegisterModel>::State;

    fn spec(&self) -> FunctionSpec {
        RegisterModel::spec(self)
    }

    fn init(&mut self, cx: &Cx<Self>) -> Result<()> {
        RegisterModel::init(self, cx)
    }

    fn read(&mut self, _cx: &Cx<Self>, bar: u8, offset: u64, data: &mut [u8]) {
        if bar == M::BAR {
            self.read_register(offset, data);
        } else {
            data.fill(0xff);
        }
    }

    fn read_traits(&self, bar: u8, offset: u64, len: usize) -> ReadTraits {
        // Reads of other BARs change nothing, either.
        M::register_traits(if bar == M::BAR { offset } else { u64::MAX }, len)
    }

    fn find_register(&self, bar: u8, range: Range<u64>) -> Option<u64> {
        if bar == M::BAR { <M as Registers>::find_register(range) } else { None }
    }

    fn write(&mut self, cx: &Cx<Self>, bar: u8, offset: u64, data: &[u8]) {
        if bar == M::BAR
            && let Some(write) = self.decode_write(offset, data)
        {
            RegisterModel::write(self, cx, write);
        }
    }

    fn reset(&mut self, _cx: &Cx<Self>) {
        self.reset_registers();
    }
}

impl<M: RegisterModel> Save for M {
    const KIND: &'static str = M::KIND;
    const VERSION: u32 = M::VERSION;
    type Image = <M as Registers>::Image;

    fn save(&self) -> Self::Image {
        self.save_registers()
    }

    fn restore(&mut self, _cx: &Cx<Self>, image: Self::Image) -> Result<()> {
        self.restore_registers(image)
    }
}
