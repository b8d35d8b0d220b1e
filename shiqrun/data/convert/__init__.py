"""The modules of this folder turn logs of other tools into JSON-lines rows that `data=jsonl` reads."""
