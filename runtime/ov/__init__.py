"""OpenVINO's CPU plugin: how programs are compiled, kept in the device cache, loaded and run."""
