// Command gateway builds the S3 server of the tests, unless it is there already,
// and prints its path.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/grangemesh/grange/simulations/buckettest"
)

func main() {
	path, err := buckettest.Gateway(context.Background())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(path)
}
