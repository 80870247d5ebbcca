"""The door that fairseq opens: `--user-dir headdynamics` imports every module of this folder."""
