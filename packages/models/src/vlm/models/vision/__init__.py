"""Image encoders: InternViT, ConvNeXt, any timm model; and fast resizing of images."""
