/* A Modbus server on libmodbus, for tests: libmodbus-server tcp PORT | rtu DEVICE
 * Holding register i holds i, input register i 1000 + i, coil i is i % 3 == 0, discrete input i is i % 2; 2000 of each.
 * Prints "ready", then one line per request: function unit start count. */
#include <errno.h>
#include <modbus.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <unistd.h>

enum { COUNT = 2000 };

static int answer(modbus_t *context, modbus_mapping_t *map) {
    uint8_t query[MODBUS_TCP_MAX_ADU_LENGTH];
    int at = modbus_get_header_length(context);
    int size = modbus_receive(context, query);
    if (size > 0) {
        printf("%d %d %d %d\n", query[at], query[at - 1], query[at + 1] << 8 | query[at + 2], query[at + 3] << 8 | query[at + 4]);
        fflush(stdout);
        modbus_reply(context, query, size, map);
    }
    return size;
}

static int serve_tcp(modbus_t *context, modbus_mapping_t *map) {
    int listener = modbus_tcp_listen(context, 4), highest = listener;
    fd_set open_set, ready;
    if (listener < 0) return 1;
    FD_ZERO(&open_set);
    FD_SET(listener, &open_set);
    puts("ready");
    fflush(stdout);
    for (;;) {
        ready = open_set;
        if (select(highest + 1, &ready, NULL, NULL, NULL) < 0) return 1;
        for (int fd = 0; fd <= highest; fd++) {
            if (!FD_ISSET(fd, &ready)) continue;
            if (fd == listener) {
                int new_fd = accept(listener, NULL, NULL);
                if (new_fd < 0 || new_fd >= FD_SETSIZE) continue;
                FD_SET(new_fd, &open_set);
                if (new_fd > highest) highest = new_fd;
            } else {
                modbus_set_socket(context, fd);
                if (answer(context, map) < 0) {
                    close(fd);
                    FD_CLR(fd, &open_set);
                }
            }
        }
    }
}

static int serve_rtu(modbus_t *context, modbus_mapping_t *map) {
    if (modbus_set_slave(context, 1) < 0 || modbus_connect(context) < 0) return 1;
    puts("ready");
    fflush(stdout);
    for (;;)
        if (answer(context, map) < 0 && errno == EBADF) return 1;
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    int rtu = strcmp(argv[1], "rtu") == 0;
    modbus_t *context = rtu ? modbus_new_rtu(argv[2], 19200, 'N', 8, 1) : modbus_new_tcp("127.0.0.1", atoi(argv[2]));
    modbus_mapping_t *map = modbus_mapping_new(COUNT, COUNT, COUNT, COUNT);
    if (context == NULL || map == NULL) return 1;
    for (int i = 0; i < COUNT; i++) {
        map->tab_bits[i] = i % 3 == 0;
        map->tab_input_bits[i] = i % 2;
        map->tab_registers[i] = i;
        map->tab_input_registers[i] = 1000 + i;
    }
    return rtu ? serve_rtu(context, map) : serve_tcp(context, map);
}
