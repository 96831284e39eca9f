//! Features (5.27.1): which there are, and what of them can be changed.

/// Features by their identifiers (figure 317).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Feature {
    Arbitration,
    PowerManagement,
    TemperatureThreshold,
    ErrorRecovery,
    VolatileWriteCache,
    NumberOfQueues,
    InterruptCoalescing,
    InterruptVectorConfiguration,
    WriteAtomicityNormal,
    AsynchronousEventConfiguration,
}

/// The features that there are, by identifier. All can be changed, and none can be saved. The write
/// cache is there only if a namespace has one.
pub(crate) const FEATURES: &[(u8, Feature)] = &[
    (0x01, Feature::Arbitration),
    (0x02, Feature::PowerManagement),
    (0x04, Feature::TemperatureThreshold),
    (0x05, Feature::ErrorRecovery),
    (0x06, Feature::VolatileWriteCache),
    (0x07, Feature::NumberOfQueues),
    (0x08, Feature::InterruptCoalescing),
    (0x09, Feature::InterruptVectorConfiguration),
    (0x0a, Feature::WriteAtomicityNormal),
    (0x0b, Feature::AsynchronousEventConfiguration),
];

/// The feature of an identifier.
pub(crate) fn find(id: u8) -> Option<Feature> {
    FEATURES.iter().find(|(known, _)| *known == id).map(|(_, feature)| *feature)
}

/// What Get Features asks for (5.15, Select).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Select {
    Current,
    Default,
    /// Nothing is saved, so that it is the default.
    Saved,
    Capabilities,
}

impl Select {
    pub(crate) fn from_dword(dword: u32) -> Option<Self> {
        match dword >> 8 & 7 {
            0 => Some(Self::Current),
            1 => Some(Self::Default),
            2 => Some(Self::Saved),
            3 => Some(Self::Capabilities),
            _ => None,
        }
    }
}

/// Capabilities of each feature: changeable, not saveable, of the controller.
pub(crate) const CAPABILITIES: u32 = 1 << 2;

/// Asynchronous Event Configuration (figure 324): SMART critical warnings.
pub(crate) const EVENT_SMART: u32 = 0xff;
/// Namespace Attribute Notices.
pub(crate) const EVENT_NAMESPACE: u32 = 1 << 8;
