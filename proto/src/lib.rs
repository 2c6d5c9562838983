//! Wire contracts: NSM's messages and methods; generated code only, but for the [fields that are not known](UnknownFields).
//!
//! One module per protobuf package, with messages, clients and servers. Package names, field numbers and method paths
//! are those of Network Service Mesh, so its programs can be called and can call; `tests/wire.rs` compares them with
//! a table of facts. The modules stand side by side because generated code names the other packages by `super::`.
//!
//! Without the feature `grpc` (on by default) only the messages remain, for the cores, which have no tokio.

mod unknown_fields;

pub use unknown_fields::UnknownFields;

/// Lints do not apply to code that a generator writes.
macro_rules! package {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
        pub mod $name {
            include!(concat!(env!("OUT_DIR"), "/", stringify!($name), ".rs"));
        }
    };
}

package! {
    /// Connections, their paths and events; the service that watches them.
    connection
}
package! {
    /// What a connection gives its two ends: addresses, routes, DNS settings.
    connectioncontext
}
package! {
    /// The service that makes, refreshes and closes connections.
    networkservice
}
package! {
    /// The catalogue of network services and endpoints.
    registry
}

/// All packages and what they import as an encoded `google.protobuf.FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
