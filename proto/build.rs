use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files =
        ["types", "control", "containers", "live", "dispatch", "cluster"].map(|name| format!("roster/v1/{name}.proto"));
    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // Reflection serves this file.
    std::fs::write(out.join("descriptors.bin"), prost::Message::encode_to_vec(&descriptors))?;
    // Far bigger than what else an answer may be.
    let boxed = "roster.v1.ContainerAnswer.answer.usage";
    tonic_prost_build::configure().btree_map(".").bytes(".").boxed(boxed).compile_fds(descriptors)?;
    println!("cargo::rerun-if-changed=proto");
    Ok(())
}
