//! Why a device or parent could not be made.

/// Why a model could not be made. Says what is wrong and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No model has this name.
    #[error("there is no model `{name}`; {}", remedy("model", "models", nearest, known))]
    UnknownModel {
        /// The name.
        name: String,
        /// The model that was probably meant.
        nearest: Option<String>,
        /// The names of all models.
        known: Vec<String>,
    },
    /// The model does not have this option.
    #[error("`{model}` has no option `{option}`; {}", remedy("option", "options", nearest, known))]
    UnknownOption {
        /// The model.
        model: String,
        /// The option.
        option: String,
        /// The option that was probably meant.
        nearest: Option<String>,
        /// The names of all options of the model.
        known: Vec<String>,
    },
    /// The value of an option has the wrong type or is out of range.
    #[error("option `{option}` of `{model}`: {problem}; must be {expected}")]
    BadValue {
        /// The model.
        model: String,
        /// The option.
        option: String,
        /// What is wrong.
        problem: String,
        /// What would be right.
        expected: String,
    },
    /// The device could not be made.
    #[error("cannot make the device")]
    Device(#[from] vfiod_core::Error),
}

/// What would be right instead.
fn remedy(one: &str, all: &str, nearest: &Option<String>, known: &[String]) -> String {
    match nearest {
        Some(nearest) => format!("did you mean `{nearest}`?"),
        None if known.is_empty() => format!("it has no {one} at all"),
        None => format!("{all}: {}", known.join(", ")),
    }
}
