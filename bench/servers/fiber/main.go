// Fiber is a server of fiber under its own prefork.
package main

import (
	"log"
	"runtime"

	"github.com/gofiber/fiber/v3"

	"github.com/gocluster/cluster/bench/servers/hello"
)

func main() {
	hello.Parse()
	if hello.Workers > 0 && !fiber.IsChild() {
		runtime.GOMAXPROCS(hello.Workers) // which is how many children there are
	}
	app := fiber.New()
	app.Get("/", func(c fiber.Ctx) error {
		hello.Work()
		c.Set("X-Pid", hello.Pid)
		c.Set("Content-Type", "text/plain")
		return c.SendString(hello.Body)
	})
	log.Fatal(app.Listen(hello.Addr, fiber.ListenConfig{EnablePrefork: true, DisableStartupMessage: true}))
}
