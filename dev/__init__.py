"""Tools for developers: parity with published code, fuzzing, crashes."""
