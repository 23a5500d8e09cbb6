// Grpc runs a gRPC server, on port 3000 or at the address given as its
// argument. Its one service is gRPC's own health check.
package main

import (
	"context"
	"log"
	"os"
	"strconv"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"

	"github.com/gocluster/cluster"
)

// A server is a cluster.Server: it has the Serve of grpc.Server.
// GracefulStop tells clients to connect anew, and waits for their calls.
type server struct{ *grpc.Server }

func (s server) Shutdown(ctx context.Context) error {
	defer context.AfterFunc(ctx, s.Stop)() // which ends GracefulStop
	s.GracefulStop()
	return ctx.Err()
}

func (s server) Close() error {
	s.Stop()
	return nil
}

func main() {
	m := &cluster.Master{Addr: ":3000", NewServer: newServer, Workers: 2}
	if len(os.Args) > 1 {
		m.Addr = os.Args[1]
	}
	if err := m.ListenAndServe(nil); err != nil {
		log.Fatal(err)
	}
}

func newServer() (cluster.Server, error) {
	s := grpc.NewServer(grpc.UnaryInterceptor(tellPid))
	healthpb.RegisterHealthServer(s, health.NewServer())
	return server{s}, nil
}

// tellPid sends the worker's process id with every answer.
func tellPid(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if err := grpc.SetHeader(ctx, metadata.Pairs("pid", strconv.Itoa(os.Getpid()))); err != nil {
		return nil, err
	}
	return handler(ctx, req)
}
