//! Compiles `proto/etcd.proto` to Rust. protox is a protobuf compiler in Rust, so no protoc has to be installed.

use std::error::Error;

const INCLUDE: &str = "proto";
const FILE: &str = "etcd.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={INCLUDE}");
    println!("cargo:rerun-if-changed=build.rs");
    let files = protox::compile([FILE], [INCLUDE])?;
    // Keys and values as `Bytes`: they are cut out of what was received, not copied.
    tonic_prost_build::configure().build_server(false).bytes(".").compile_fds(files)?;
    Ok(())
}
