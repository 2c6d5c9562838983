//! Compiles `proto/*.proto` to Rust. protox is a protobuf compiler in Rust, so no protoc has to be installed.

mod unknown_fields;

use std::{env, error::Error, fs, path::PathBuf};

const INCLUDE: &str = "proto";
const FILES: [&str; 4] =
    ["connection.proto", "connectioncontext.proto", "networkservice.proto", "registry.proto"];
/// Clients and servers exist only where the crate's feature of this name is on.
const GRPC: &str = r#"#[cfg(feature = "grpc")]"#;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={INCLUDE}");
    println!("cargo:rerun-if-changed=build");
    let mut compiler = protox::Compiler::new([INCLUDE])?;
    compiler.include_imports(true).include_source_info(true).open_files(FILES)?;

    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    fs::write(out_dir.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    // BTreeMap: one message always encodes to the same octets, so records can be compared and hashed.
    tonic_prost_build::configure()
        .btree_map(".")
        .client_mod_attribute(".", GRPC)
        .server_mod_attribute(".", GRPC)
        .compile_fds(compiler.file_descriptor_set())?;
    for file in FILES {
        let generated = out_dir.join(file).with_extension("rs");
        fs::write(&generated, unknown_fields::keep(&fs::read_to_string(&generated)?)?)?;
    }
    Ok(())
}
