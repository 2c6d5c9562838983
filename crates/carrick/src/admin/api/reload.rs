//! What a reload did: `carrick reload`.

use serde::{Deserialize, Serialize};

/// What a reload did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ReloadReply {
    /// What changed, one line each: `import postgres@onprem.test: added`.
    pub(crate) applied: Vec<String>,
    /// Keys whose change needs a restart.
    pub(crate) restart_needed: Vec<String>,
}
