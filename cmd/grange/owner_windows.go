package main

import "os"

// giveTo does nothing: here the folder's rights are its files'.
func giveTo(*os.File, string) error { return nil }
