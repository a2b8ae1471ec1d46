package main

// again does nothing: on this system a process can't become another.
func again([]string, string) error { return nil }
