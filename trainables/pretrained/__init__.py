"""Published weights of backbones: where they are, their licences, reading and downloading them."""
