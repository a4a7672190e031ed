//! Compiles `cairn/v1/*.proto` with protox, so that no `protoc` has to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "cairn/v1/types.proto",
        "cairn/v1/coordinator.proto",
        "cairn/v1/datanode.proto",
        "cairn/v1/metalog.proto",
    ];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    tonic_prost_build::configure()
        .bytes(".") // file data stays `Bytes` from socket to disk
        .btree_map(".")
        .codec_path("crate::codec::SizedCodec")
        .compile_fds(descriptors)?;
    Ok(())
}
